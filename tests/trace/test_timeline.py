"""Idle gaps cut by cause and given to whoever kept the device waiting, worked out by hand."""

import numpy as np
import pytest

from taxbreak_vllm.trace.timeline import main_device, main_thread

ADD = "void at::native::vectorized_elementwise_kernel<4, AddFunctor>"
GEMM = "ampere_sgemm_128x64_tn"


@pytest.fixture
def gap(reference):
    """A device that idles from 100 to 300 while its host does one thing after another."""
    r = reference
    return [
        r.op("aten::add", 45, 100),
        r.call("cudaLaunchKernel", 50, 60, 1),
        r.kernel(ADD, 70, 100, 1),
        # python 100 to 120
        r.call("cudaMalloc", 120, 150),
        r.call("cudaStreamSynchronize", 150, 170),
        # python 170 to 180
        r.op("aten::mm", 180, 260),
        r.call("cudaLaunchKernel", 200, 215, 3),  # its kernel waits on another stream's
        r.call("cudaLaunchKernel", 240, 250, 2),
        r.kernel(GEMM, 300, 350, 2),
        r.kernel(ADD, 350, 360, 3, stream=8),
    ]


def test_a_gap_is_divided_among_what_the_host_did_until_it_launched(analyze, gap):
    total = analyze(gap).total

    # T_dispatch: 5 (45 to 50), 20 (180 to 200), 25 (215 to 240); T_base = 12 (of 5 and 20), so ΔCT = 13, the last
    # stretch before the launch: 227 to 240. From 240 on the launch is issued: queue.
    assert total.device.idle.queue_ns == 60
    assert total.device.idle.blocked_ns == 20
    assert total.exposed.delta_ft_ns == (20 + 10) + (20 + 12)  # python, and dispatch 180-200 and 215-227
    assert total.exposed.delta_ct_ns == 13
    assert total.exposed.delta_kt_ns == 15  # inside the other launch call
    assert total.exposed.other_ns == 30  # inside cudaMalloc
    assert total.device.idle.host_ns == 62 + 13 + 15 + 30


def test_what_lies_before_the_first_and_after_the_last_activity_is_edge(analyze, gap):
    device = analyze(gap).total.device

    # From 45, the first event, to 360, the end of the last kernel; busy 30 + 60.
    assert device.window_ns == 315
    assert device.active_ns == 90
    assert device.idle.edge_ns == 25  # 45 to 70
    assert device.idle_ns == 225 == 60 + 20 + 120 + 25


def test_the_host_of_the_main_thread_is_partitioned(analyze, gap):
    step = analyze(gap).total

    # 45 to 260. dispatch: 45-50, 60-100, 180-200, 215-227, 250-260.
    assert step.window_ns == 215
    assert step.host.python_ns == 30
    assert step.host.dispatch_ns == 5 + 40 + 20 + 12 + 10
    assert step.host.library_ns == 13
    assert step.host.launch_ns == 10 + 15 + 10
    assert step.host.runtime_ns == 30
    assert step.host.blocked_ns == 20
    assert step.inference_latency_ns == 360 - 45


def test_a_gap_whose_launch_came_before_it_is_all_queue(analyze, reference):
    r = reference
    events = [
        r.call("cudaLaunchKernel", 0, 5, 1),
        r.call("cudaLaunchKernel", 6, 9, 2),
        r.kernel("a", 10, 20, 1),
        r.call("cudaStreamSynchronize", 12, 60),  # what the host does now no longer matters
        r.kernel("b", 50, 60, 2),
    ]

    idle = analyze(events).total.device.idle
    assert (idle.host_ns, idle.blocked_ns, idle.queue_ns) == (0, 0, 30)


def test_a_gap_is_the_doing_of_the_thread_that_ended_it(analyze, reference):
    r = reference
    events = [
        r.call("cudaLaunchKernel", 0, 5, 1, thread=1),
        r.kernel("a", 10, 20, 1),
        r.op("aten::mm", 0, 100, thread=1),  # busy in an op all the while, but that is not what was waited for
        r.call("cudaStreamSynchronize", 15, 40, thread=2),
        r.call("cudaLaunchKernel", 45, 50, 2, thread=2),
        r.kernel("b", 60, 70, 2),
    ]

    step = analyze(events).total
    # 20 to 40 blocked, 40 to 45 python of thread 2, 45 to 60 queue.
    idle = step.device.idle
    assert (idle.blocked_ns, idle.host_ns, idle.queue_ns) == (20, 5, 15)
    assert step.exposed.delta_ft_ns == 5


def test_an_activity_of_no_length_still_cuts_a_gap(analyze, reference):
    r = reference
    events = [
        r.kernel("a", 0, 10),
        r.call("cudaLaunchKernel", 25, 28, 1),
        r.kernel("empty", 30, 30, 1),
        r.call("cudaLaunchKernel", 35, 38, 2),
        r.kernel("b", 50, 60, 2),
    ]

    total = analyze(events).total
    # 10 to 25 the host (python), 25 to 30 queue; 30 to 35 the host, 35 to 50 queue.
    assert (total.device.idle.host_ns, total.device.idle.queue_ns) == (20, 20)
    assert total.device.active_ns == 20
    assert total.kernels == 3


def test_activities_that_touch_or_begin_together_leave_no_gap(analyze, reference):
    kernel = reference.kernel
    events = [kernel("a", 0, 10), kernel("b", 10, 20), kernel("c", 10, 30, stream=8), kernel("d", 30, 30)]

    device = analyze(events).total.device
    assert (device.window_ns, device.active_ns, device.idle_ns) == (30, 30, 0)


def test_work_of_another_step_in_the_window_is_not_idle_and_not_its_own(analyze, reference):
    r = reference
    events = [
        r.step("one", 0, 100),
        r.call("cudaLaunchKernel", 10, 12, 1),
        r.kernel("a", 80, 130, 1),
        r.step("two", 100, 200),
        r.kernel("unlinked", 140, 150),  # began in the second step
    ]

    two = analyze(events).steps[1].device
    assert (two.window_ns, two.active_ns, two.other_active_ns) == (100, 10, 30)
    assert (two.idle.queue_ns, two.idle.edge_ns) == (10, 50)


def test_a_kernel_that_began_before_its_step_counts_from_the_steps_start(analyze, reference):
    r = reference
    # Clocks of host and device disagree: the kernel seems to begin 5 before the step that launched it.
    events = [r.step("s", 100, 200), r.call("cudaLaunchKernel", 100, 110, 1), r.kernel("a", 95, 150, 1)]

    device = analyze(events).steps[0].device
    assert (device.active_ns, device.kernel_sum_ns, device.idle_ns) == (50, 55, 50)


def test_the_main_thread_is_the_one_that_launched_most_in_the_step(analyze, reference):
    r = reference
    events = [r.step("s", 0, 100, thread=1), r.op("aten::add", 10, 20, thread=1)]
    for number in range(3):
        thread = 2 if number else 1
        at = 30 + 10 * number
        events += [r.call("cudaLaunchKernel", at, at + 2, number, thread=thread), r.kernel("k", at + 5, at + 6, number)]

    host = analyze(events).steps[0].host
    assert (host.dispatch_ns, host.launch_ns) == (0, 4)  # thread 2 has two launches of 2 ns, and no op


def test_a_step_without_launches_shows_its_own_thread(analyze, reference):
    r = reference
    events = [
        r.step("first", 0, 100, thread=1),
        r.op("aten::add", 0, 40, thread=1),
        r.step("second", 100, 200, thread=2),
        r.op("aten::add", 100, 170, thread=2),
        r.kernel("k", 0, 1),
    ]

    assert [step.host.dispatch_ns for step in analyze(events).steps] == [40, 70]


def test_main_thread_and_device_of_columns():
    thread, group = np.array([4, 4, 9, 9, 9, 4], dtype=np.int32), np.array([0, 0, 0, 1, 1, -1])

    assert main_thread(thread, group, np.array([1, 2, 3], dtype=np.int32)).tolist() == [4, 9, 3]


def test_a_trace_without_activities_has_no_main_device(measure, reference):
    measured = measure([reference.op("aten::mm", 0, 10), reference.call("cudaLaunchKernel", 2, 3, 1)])

    assert main_device(measured.activities) == -1
