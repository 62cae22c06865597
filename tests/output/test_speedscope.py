"""Files that speedscope opens: nesting, order and names by its file format, times by the host partition."""

import json
from collections import Counter
from pathlib import Path

import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.model.breakdown import HostTime
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.output.speedscope import Speedscope, write_speedscope
from taxbreak_vllm.taxes.recording import Recording

DATA = Path(__file__).parents[1] / "data"


def profiles(path):
    """Read a trace as speedscope does: check every rule of its format, return {profile: [(stack, start, end)]}."""
    file = Speedscope()
    with Recording.open(path) as recording:
        file.add_recording(recording)
    document = json.loads(file.to_json())
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    names = [frame["name"] for frame in document["shared"]["frames"]]
    assert len(set(names)) == len(names)
    assert 0 <= document["activeProfileIndex"] < len(document["profiles"])
    return {profile["name"]: list(_read(profile, names)) for profile in document["profiles"]}


def _read(profile, names):
    assert (profile["type"], profile["unit"]) == ("evented", "nanoseconds")
    stack, now = [], profile["startValue"]
    for event in profile["events"]:
        assert event["at"] >= now, "events are in order of time"
        now = event["at"]
        if event["type"] == "O":
            stack.append((names[event["frame"]], now))
        else:
            assert event["type"] == "C"
            assert stack[-1][0] == names[event["frame"]], "the innermost frame closes first"
            yield tuple(name for name, _ in stack), stack.pop()[1], now
    assert stack == [], "every frame is closed"
    assert now <= profile["endValue"]


def leaves(frames):
    return [(stack, start, end) for stack, start, end in frames if stack[-1].startswith("[")]


def write_trace(path, *events):
    path.write_text(json.dumps({"traceEvents": [{"ph": "X", "pid": 1, "tid": 1, **event} for event in events]}))
    return path


def event(category, name, at, duration, **args):
    return {"cat": category, "name": name, "ts": at, "dur": duration, "args": args}


def kernel(name, at, duration, correlation):
    return event("kernel", name, at, duration, correlation=correlation, stream=7, device=0)


def test_ops_and_calls_nest_and_the_class_of_the_instant_is_innermost(tmp_path):
    path = write_trace(
        tmp_path / "t.json",
        event("cpu_op", "aten::copy_", 0, 30),
        event("cuda_runtime", "cudaLaunchKernel", 10, 5, correlation=1),
        event("cpu_op", "aten::mul", 40, 10),
        kernel("k", 20, 3, 1),
    )

    frames = profiles(path)["host thread 1:1"]

    assert [(stack, start // 1000, end // 1000) for stack, start, end in leaves(frames)] == [
        (("aten::copy_", "[dispatch]"), 0, 10),
        (("aten::copy_", "cudaLaunchKernel", "[launch]"), 10, 15),
        (("aten::copy_", "[dispatch]"), 15, 30),
        (("[python]",), 30, 40),
        (("aten::mul", "[dispatch]"), 40, 50),
    ]


def test_what_outlives_the_frame_around_it_is_cut_there(tmp_path):
    crossing = write_trace(tmp_path / "t.json", event("cpu_op", "a", 0, 10), event("cpu_op", "b", 5, 10))

    frames = profiles(crossing)["host thread 1:1"]

    assert [(start, end) for stack, start, end in frames if stack == ("a", "b")] == [(5000, 10000)]


def test_python_functions_stand_around_the_ops_they_call(tmp_path):
    path = write_trace(
        tmp_path / "t.json",
        event("cpu_op", "aten::view", 0, 2),
        event("python_function", "model.py(7): forward", 2, 50),
        event("cpu_op", "aten::copy_", 10, 30),
        event("cuda_runtime", "cudaLaunchKernel", 20, 5, correlation=1),
        kernel("k", 30, 3, 1),
    )
    target = tmp_path / "out.json"

    write_speedscope([path], target)

    document = json.loads(target.read_text())
    frames = _read(document["profiles"][0], [frame["name"] for frame in document["shared"]["frames"]])
    assert [(stack, start // 1000, end // 1000) for stack, start, end in leaves(frames)] == [
        (("aten::view", "[dispatch]"), 0, 2),
        (("model.py(7): forward", "[python]"), 2, 10),
        (("model.py(7): forward", "aten::copy_", "[dispatch]"), 10, 20),
        (("model.py(7): forward", "aten::copy_", "cudaLaunchKernel", "[launch]"), 20, 25),
        (("model.py(7): forward", "aten::copy_", "[dispatch]"), 25, 40),
    ]


def test_spans_of_no_length_and_identical_spans_stay_valid(tmp_path):
    spans = [event("cpu_op", name, at, duration) for name, at, duration in (("a", 5, 0), ("b", 5, 0), ("c", 5, 9))]
    path = write_trace(tmp_path / "t.json", *spans, event("cpu_op", "d", 5, 9), event("cpu_op", "e", 14, 0))

    opened = {stack[-1] for stack, _, _ in profiles(path)["host thread 1:1"]}

    assert set("abcde") <= opened


def test_a_stream_shows_kernels_in_their_family_and_overlap_beside_it(tmp_path):
    path = write_trace(
        tmp_path / "t.json",
        *(event("cuda_runtime", "cudaLaunchKernel", at, 2, correlation=at) for at in (10, 20, 30)),
        kernel("ampere_sgemm_32x32", 40, 20, 10),
        kernel("ampere_sgemm_32x32", 50, 20, 20),  # begins before the one before it ends
        kernel("softmax", 60, 5, 30),
    )

    found = profiles(path)

    assert found["device 0 stream 7"][0] == (("[gemm]", "ampere_sgemm_32x32"), 30_000, 50_000)
    assert [stack[-1] for stack, *_ in found["device 0 stream 7"] if len(stack) == 2][-1] == "softmax"
    assert found["device 0 stream 7, overlap 1"][0] == (("[gemm]", "ampere_sgemm_32x32"), 40_000, 60_000)


def test_several_traces_share_a_file_and_their_profiles_say_whose_they_are(tmp_path):
    other = tmp_path / "other.json"
    other.write_text((DATA / "serving.json").read_text())
    target = tmp_path / "out.json"

    write_speedscope([DATA / "serving.json", other], target)

    names = [profile["name"] for profile in json.loads(target.read_text())["profiles"]]
    assert names == [
        f"{file} · {name}"
        for file in ("serving.json", "other.json")
        for name in ("host thread 100:100", "device 0 stream 7")
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_disk_that_refuses_is_said_in_one_line(tmp_path):
    with pytest.raises(TaxbreakError, match=r"^[^\n]*missing[^\n]*cannot write[^\n]*$"):
        write_speedscope([DATA / "serving.json"], tmp_path / "missing" / "out.json")


def test_within_steps_the_innermost_frames_sum_to_the_host_partition():
    check_frames(DATA / "serving.json")


def test_within_steps_of_a_real_trace_the_innermost_frames_sum_to_the_host_partition(trace_path):
    check_frames(trace_path)


def check_frames(path):
    breakdown = analyze(path)
    with Recording.open(path) as recording:
        steps = {window.name for window in recording.windows}
        main = f"host thread {':'.join(recording.head.threads[recording.windows[0].thread])}"

    spent = Counter()
    for stack, start, end in leaves(profiles(path)[main]):
        if steps & set(stack):
            spent[stack[-1]] += end - start

    for part in HostTime.__dataclass_fields__:
        assert spent[f"[{part.removesuffix('_ns')}]"] == sum(getattr(step.host, part) for step in breakdown.steps)


def test_every_activity_of_a_real_trace_is_on_a_stream_whole(trace_path):
    with Recording.open(trace_path) as recording:
        a = recording.measured.activities

    frames = [
        f for name, found in profiles(trace_path).items() if name.startswith("device") for f in found if len(f[0]) == 2
    ]

    assert len(frames) == len(a.row)
    assert sum(end - start for _, start, end in frames) == int((a.end_ns - a.start_ns).sum())
