import threading
import time

import pytest

from taxbreak_vllm.machine.run_queue import run_queue


def test_a_thread_that_computes_is_given_cpu_time():
    tid = threading.get_native_id()
    before = run_queue(tid)
    if before is None:
        pytest.skip("this kernel keeps no schedstat")
    until_ns = time.thread_time_ns() + 20_000_000
    while time.thread_time_ns() < until_ns:
        pass

    after = run_queue(tid)

    assert after[0] - before[0] >= 15_000_000
    assert after[1] >= before[1]


@pytest.mark.parametrize("content", [None, "", "12", "a few"])
def test_what_the_kernel_does_not_tell_is_unknown(tmp_path, content):
    if content is not None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "schedstat").write_text(content)

    assert run_queue(7, tasks=tmp_path) is None


def test_the_second_number_is_the_time_without_a_cpu(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "schedstat").write_text("1000 200 3\n")

    assert run_queue(7, tasks=tmp_path) == (1000, 200)
