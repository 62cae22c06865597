"""A real device tells when it was idle: torch's own events, on the current stream."""

import time

import pytest

torch = pytest.importorskip("torch", reason="events are torch's")

from types import SimpleNamespace  # noqa: E402 - after the check for torch

from taxbreak_vllm.iterations.rows import UNASKED, UNKNOWN  # noqa: E402
from taxbreak_vllm.serving.device_idle import ONE_IN, DeviceIdle, open_device_idle  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees"),
]

MS = 10**6


@pytest.fixture
def idle():
    """Asked about every step."""
    torch.zeros(1, device="cuda")
    return DeviceIdle(
        lambda: torch.cuda.Event(enable_timing=True),
        is_capturing=torch.cuda.is_current_stream_capturing,
        steps_between=lambda: 0,
    )


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
    assert idle.read(gap) == UNKNOWN
    assert time.monotonic_ns() - begun_ns < 5 * MS

    torch.cuda.synchronize()

    assert idle.read(gap) < MS / 50


def test_events_are_of_the_stream_that_the_calling_thread_has(idle):
    """Work on a stream of its own is waited for by the events on it, whatever the default one does."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call(idle, 50_000_000)
        gap = call(idle, 1000)
    torch.cuda.default_stream().synchronize()
    assert idle.read(gap) == UNKNOWN  # the default stream has nothing to do, and this one is at work

    stream.synchronize()

    assert 0 <= idle.read(gap) < MS / 50


def test_a_capture_in_progress_gets_no_event_and_succeeds(idle):
    value = torch.zeros(8, device="cuda")
    call(idle, 1000)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gap = idle.begin()
        value.add_(1)
        idle.end()
    graph.replay()
    torch.cuda.synchronize()

    assert value.tolist() == [1] * 8
    assert idle.read(gap) == UNASKED
    call(idle, 1000)
    gap = call(idle, 1000)
    torch.cuda.synchronize()
    assert idle.read(gap) >= 0


def _median_ns(idle, num_steps):
    rounds_ns = []
    for _ in range(200):
        begun_ns = time.perf_counter_ns()
        for _ in range(num_steps):
            if idle.begin_step():
                for _ in range(2):
                    idle.begin()
                    idle.end()
        rounds_ns.append((time.perf_counter_ns() - begun_ns) / num_steps)
    torch.cuda.synchronize()
    return sorted(rounds_ns)[len(rounds_ns) // 2]


def test_framing_a_step_takes_the_host_microseconds_and_in_bursts_a_fraction_of_one(idle, record_property):
    framed_ns = _median_ns(idle, 1)
    in_bursts_ns = _median_ns(open_device_idle(SimpleNamespace(device=torch.device("cuda"))), 128 * 8)
    record_property("framed_ns", framed_ns)
    record_property("in_bursts_ns", in_bursts_ns)

    assert framed_ns < 40_000
    assert in_bursts_ns < 3 * framed_ns / ONE_IN
