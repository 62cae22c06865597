"""The lanes of a step cover its windows without overlap and sum to its figures, to the nanosecond."""

from itertools import pairwise
from pathlib import Path

import msgspec

from taxbreak_vllm import analyze as analyze_path
from taxbreak_vllm.insight.segments import step_timelines

SERVING = Path(__file__).parents[1] / "data" / "serving.json"


def lane(timeline, title):
    return next(lane for lane in timeline.lanes if lane.title == title)


def sums(lane):
    total = dict.fromkeys(lane.kinds, 0)
    for kind, length_ns in zip(lane.kind, lane.length_ns, strict=True):
        total[lane.kinds[kind]] += length_ns
    return total


def check(timeline, step):
    host, device = lane(timeline, "host by component"), lane(timeline, "device")
    for shown, window_ns in ((host, step.window_ns), (device, step.device.window_ns)):
        ends = [start + length for start, length in zip(shown.start_ns, shown.length_ns, strict=True)]
        assert (shown.start_ns[0], ends[-1]) == (0, window_ns)
        assert all(end == start for end, (_, start) in zip(ends, pairwise(shown.start_ns), strict=False))
    of_host = sums(host)
    of_host["blocked"] = of_host.pop("compute", of_host.get("blocked"))
    assert of_host == {name: getattr(step.host, f"{name}_ns") for name in of_host}
    of_device = {name: step.device.idle for name in ("host", "blocked", "queue", "edge")}
    of_device |= dict.fromkeys(("active", "other_active"), step.device)
    assert sums(device) == {name: getattr(parts, f"{name}_ns") for name, parts in of_device.items()}


def test_the_lanes_of_a_real_trace_sum_to_the_breakdown(trace_path):
    check_lanes(trace_path)


def test_the_lanes_of_each_of_several_steps_sum_to_the_breakdown():
    check_lanes(SERVING)


def check_lanes(path):
    breakdown = analyze_path(path)

    timelines = step_timelines(path, numbers=range(3), max_segments=10**6)

    assert len(timelines) == min(3, len(breakdown.steps))
    for timeline, step in zip(timelines, breakdown.steps, strict=False):
        check(timeline, step)


def test_made_up_instants_carry_names(reference, tmp_path):
    r = reference
    events = [
        *(r.step("one", 0, 1000), r.op("aten::mm", 100, 200), r.call("cudaLaunchKernel", 150, 180, 1)),
        *(r.kernel("gemm_kernel", 300, 400, 1), r.call("cudaDeviceSynchronize", 500, 900)),
        *(r.op("aten::add", 910, 960), r.call("cudaLaunchKernel", 920, 950, 2), r.kernel("add_kernel", 1000, 1100, 2)),
    ]
    path = tmp_path / "trace.json"
    path.write_text(r.to_json(events))

    (timeline,) = step_timelines(path)

    def told(title):
        shown = lane(timeline, title)
        names = (*timeline.names, "")
        rows = zip(shown.start_ns, shown.length_ns, shown.kind, shown.name, strict=True)
        return [(start, length, shown.kinds[kind], names[name]) for start, length, kind, name in rows]

    assert told("device") == [
        (0, 300, "edge", ""),
        (300, 100, "active", ""),
        (400, 100, "host", ""),
        (500, 400, "blocked", ""),
        (900, 20, "host", ""),
        (920, 80, "queue", ""),
        (1000, 100, "active", ""),
    ]
    assert (150, 30, "launch", "cudaLaunchKernel") in told("host by component")
    assert (500, 400, "blocked", "cudaDeviceSynchronize") in told("host by component")
    assert (100, 50, "dispatch", "aten::mm") in told("host by component")
    assert told("ops") == [(100, 100, "op", "aten::mm"), (910, 50, "op", "aten::add")]
    assert [(start, name) for start, _, _, name in told("kernels, stream 7")] == [
        (300, "gemm_kernel"),
        (1000, "add_kernel"),
    ]


def test_what_is_too_much_to_draw_is_cut_for_all_lanes_alike():
    (timeline,) = step_timelines(SERVING, max_segments=20)

    assert 0 < timeline.drawn_ns < timeline.window_ns
    assert all(len(lane.kind) <= 20 for lane in timeline.lanes)
    assert all(start < timeline.drawn_ns for lane in timeline.lanes for start in lane.start_ns)


def test_steps_are_chosen_by_number_and_written_as_json():
    step = analyze_path(SERVING).steps[1]

    (timeline,) = step_timelines(SERVING, numbers=[step.number])

    assert timeline.step == step.name
    assert msgspec.json.decode(timeline.to_json())["device_type"] == "cuda"


def test_steps_of_one_name_are_told_apart(reference, tmp_path):
    r = reference
    events = []
    for number in range(3):
        at = 1000 * number
        events += [r.step("execute_context_0(0)_generation_4(4)", at, at + 900), r.op("aten::mm", at + 10, at + 90)]
        events += [r.call("cudaLaunchKernel", at + 20, at + 30, number + 1)]
        events += [r.kernel(f"kernel_{number}", at + 50, at + 80, number + 1)]
    path = tmp_path / "trace.json"
    path.write_text(r.to_json(events))

    chosen = analyze_path(path, step="2")
    (timeline,) = step_timelines(path, numbers=[step.number for step in chosen.steps])

    assert "kernel_2" in timeline.names
    assert "kernel_0" not in timeline.names


def test_a_step_before_the_device_first_ran_is_all_edge(reference, tmp_path):
    r = reference
    events = [r.step("ProfilerStep#1", 0, 100), r.op("aten::view", 10, 20)]
    for number in (1, 2, 3):
        at = 1000 * number
        events += [r.step(f"ProfilerStep#{number + 1}", at, at + 500), r.op("aten::mm", at + 10, at + 90)]
        events += [r.call("cudaLaunchKernel", at + 20, at + 30, number), r.kernel("k", at + 50, at + 80, number)]
    path = tmp_path / "trace.json"
    path.write_text(r.to_json(events))
    breakdown = analyze_path(path)

    for timeline, step in zip(step_timelines(path, numbers=range(4)), breakdown.steps, strict=True):
        check(timeline, step)


def test_without_steps_the_lanes_hold_what_ran_after_the_hosts_last_event(reference, tmp_path):
    r = reference
    events = [r.op("aten::mm", 0, 90), r.call("cudaLaunchKernel", 20, 30, 1), r.kernel("k", 50, 80, 1)]
    events += [r.kernel("late", 500, 550)]
    path = tmp_path / "trace.json"
    path.write_text(r.to_json(events))
    breakdown = analyze_path(path)

    (timeline,) = step_timelines(path)

    check(timeline, breakdown.steps[0])
