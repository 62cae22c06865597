import threading
import time

import pytest

from taxbreak_vllm.machine.run_queue import RunQueueWait, run_queue


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


class Thread:
    """A thread whose kernel says what it is told to, and a clock."""

    def __init__(self, folder):
        self.schedstat = folder / "7" / "schedstat"
        self.schedstat.parent.mkdir()
        self.now_ns = 10**9
        self.wait = RunQueueWait(7, tasks=folder, now_ns=lambda: self.now_ns)
        self.cpu_ns = self.wait_ns = 10**12

    def go_on(self, cpu_ns, wait_ns, *, seconds=1.0):
        self.now_ns += round(seconds * 1e9)
        self.cpu_ns += cpu_ns
        self.wait_ns += wait_ns
        return self.ratio()

    def ratio(self):
        self.schedstat.write_text(f"{self.cpu_ns} {self.wait_ns} 1")
        return self.wait.ratio()


@pytest.fixture
def thread(tmp_path):
    return Thread(tmp_path)


def test_the_share_is_that_of_the_time_in_which_the_thread_was_ready_to_run(thread):
    assert thread.ratio() is None
    assert thread.go_on(300, 100) == 0.25
    assert thread.go_on(100, 300) == 0.5
    assert thread.go_on(0, 0) == 0.5


def test_only_the_last_seconds_count_however_often_one_asks(thread):
    thread.ratio()
    thread.go_on(0, 1000)
    for _ in range(8):
        for _ in range(4):
            assert thread.go_on(10, 0, seconds=0.25) > 0
    for _ in range(2):
        found = thread.go_on(10, 0)

    assert found == 0.0


def test_a_thread_that_wanted_nothing_of_late_has_no_share(thread):
    thread.go_on(300, 100)
    for _ in range(12):
        found = thread.go_on(0, 0)

    assert found is None


def test_where_the_kernel_does_not_tell_nothing_is_known(tmp_path):
    assert RunQueueWait(8, tasks=tmp_path).ratio() is None
