"""A real device tells when it was idle: torch's own events, on the current stream."""

import time

import pytest

torch = pytest.importorskip("torch", reason="events are torch's")

from types import SimpleNamespace  # noqa: E402 - after the check for torch

from taxbreak_vllm.serving.device_idle import open_device_idle  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees"),
]

MS = 10**6


@pytest.fixture
def idle():
    torch.zeros(1, device="cuda")
    return open_device_idle(SimpleNamespace(device=torch.device("cuda")))


def call(idle, cycles):
    gap = idle.begin()
    torch.cuda._sleep(cycles)
    idle.end()
    return gap


def test_a_device_that_its_host_leaves_alone_is_idle_for_so_long(idle):
    call(idle, 1000)
    torch.cuda.synchronize()
    begun_ns = time.monotonic_ns()
    time.sleep(0.02)
    gap = call(idle, 1000)
    left_alone_ns = time.monotonic_ns() - begun_ns
    torch.cuda.synchronize()

    assert idle.read(gap) == pytest.approx(left_alone_ns, abs=MS / 5)


def test_a_device_at_work_is_not_idle_and_not_waited_for(idle):
    call(idle, 50_000_000)  # some tens of ms
    begun_ns = time.monotonic_ns()
    gap = call(idle, 1000)
    assert idle.read(gap) == -1
    assert time.monotonic_ns() - begun_ns < 5 * MS

    torch.cuda.synchronize()

    assert idle.read(gap) < MS / 50


def test_framing_a_step_takes_the_host_microseconds(idle, record_property):
    rounds_ns = []
    for _ in range(200):
        begun_ns = time.perf_counter_ns()
        for _ in range(2):
            idle.begin()
            idle.end()
        rounds_ns.append(time.perf_counter_ns() - begun_ns)
    torch.cuda.synchronize()

    median_ns = sorted(rounds_ns)[len(rounds_ns) // 2]
    record_property("median_ns", median_ns)
    assert median_ns < 40_000
