"""The kinds of loss that the inputs of `test_cases.py` stand for, made up in other ways than there."""

import gzip
import json

import pytest

from taxbreak_vllm.insight.diff import diff
from taxbreak_vllm.insight.fusion import fusion
from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.output.text.names import visible
from taxbreak_vllm.replay.plan import plan
from taxbreak_vllm.taxes.analyze import analyze as analyze_file
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.large.spill import open_trace
from taxbreak_vllm.trace.read.kineto import read_events

US = 1000
HOUR = 3600 * 10**9


def launches(r, count, *, first=1, every=20 * US, at=0, name="k"):
    """Ops that launch a kernel each, `every` ns."""
    for i in range(count):
        start, number = at + i * every, first + i
        yield r.op("aten::mul", start, start + 12 * US)
        yield r.call("cudaLaunchKernel", start + 4 * US, start + 7 * US, number)
        yield r.kernel(name, start + 10 * US, start + 15 * US, number)


def without(events, kind, *places):
    """The events without some of a kind, by their place among those of the kind."""
    own = [e for e in events if e["kind"] == kind]
    gone = [own[place] for place in places]
    return [e for e in events if not any(e is one for one in gone)]


def said(breakdown):
    return "\n".join(breakdown.notes)


def test_a_twentieth_of_the_launches_may_be_lost_and_no_more(analyze, reference):
    events = list(launches(reference, 40))

    assert analyze(without(events, "kernel", 3, 21)).total.hdbi is not None
    lost = analyze(without(events, "kernel", 3, 21, 30))
    assert (lost.total.hdbi, lost.total.taxes.delta_ft_ns, lost.total.device.idle_ns) == (None, None, None)
    assert "3 of 40 launches left no activity" in said(lost)


def test_launches_that_a_stream_captures_are_no_loss(analyze, reference):
    r = reference
    captured = without(list(launches(r, 30, first=100, at=1000 * US)), "kernel", *range(30))
    around = [
        r.call("cudaStreamBeginCapture_v10000", 999 * US, 1000 * US),
        r.call("cudaStreamEndCapture", 1600 * US, 1601 * US),
    ]
    events = list(launches(r, 30))

    assert analyze([*events, *captured]).total.hdbi is None
    assert analyze([*events, *captured, *around]).total.hdbi is not None
    assert analyze([*events, *captured, *around]).coverage.launches_without_activity == 0
    assert analyze([*without(events, "kernel", 7, 8, 9), *captured, *around]).total.hdbi is None


def test_a_loss_in_one_step_takes_the_figures_of_that_step_alone(analyze, reference):
    r = reference
    events = [*launches(r, 20), *launches(r, 20, first=21, at=500 * US), *launches(r, 20, first=41, at=1000 * US)]
    steps = [r.step(str(i), i * 500 * US, i * 500 * US + 450 * US) for i in range(3)]

    found = analyze([*without(events, "kernel", 22, 23), *steps])

    assert [step.hdbi is None for step in found.steps] == [False, True, False]
    assert "2 of 20 launches left no activity" in found.steps[1].notes[0]
    assert found.total.hdbi is not None


def test_kernels_launched_before_the_recording_cost_hdbi_where_they_are_many(analyze, reference):
    r = reference
    events = list(launches(r, 20))
    before = [r.kernel("k", i * US, i * US + 500, 900 + i) for i in range(9)]

    few, many = analyze([*events, *before[:6]]), analyze([*events, *before])

    assert few.total.hdbi is not None
    assert "6 of 26 kernels have no launch event" in said(few)
    assert many.total.hdbi is None
    assert many.total.taxes.orchestration_ns == few.total.taxes.orchestration_ns is not None


@pytest.mark.parametrize("stray", [-HOUR, 5 * HOUR, 1_700_000_000 * 10**9])
@pytest.mark.parametrize("kind", ["op", "call", "kernel", "step"])
def test_one_record_far_away_decides_nothing_whatever_it_is(analyze, reference, stray, kind):
    r, base = reference, 10 * HOUR
    made = {
        "op": r.op("aten::mm", 0, 5),
        "call": r.call("cudaLaunchKernel", 0, 5),
        "kernel": r.kernel("k", 0, 5),
        "step": r.step("stray", 0, 5),
    }
    events = r.shifted(list(launches(r, 30)), base)

    found = analyze([*events, *r.shifted([made[kind]], base + stray)])

    assert found.evidence.out_of_range == 1
    assert found.total == analyze(events).total


def test_so_it_is_in_a_trace_too_large_for_memory(reference, tmp_path):
    r, path = reference, tmp_path / "trace.json"
    events = r.shifted(list(launches(r, 30)), 10 * HOUR)
    path.write_text(r.to_json([r.op("aten::mm", 5, 9), *events, r.kernel("k", 99 * HOUR, 99 * HOUR + 5)]))

    with open_trace(path, spill_above_bytes=0, rows_per_part=10) as trace:
        found = Recording(trace).breakdown

    assert found.evidence.out_of_range == 2
    assert found.to_json() == Recording(read_events(path)).breakdown.to_json()


def test_a_record_that_never_ends_decides_nothing(analyze, reference):
    r = reference
    events = list(launches(r, 30))

    found = analyze([*events, r.kernel("k", 599 * US, 3 * HOUR, 99)])

    assert found.evidence.out_of_range == 1
    assert found.total == analyze(events).total


def test_two_recordings_of_one_size_an_hour_apart_are_both_read(analyze, reference):
    r = reference

    found = analyze([*launches(r, 10), *launches(r, 10, first=11, at=HOUR)])

    assert (found.evidence.out_of_range, found.total.launches) == (0, 20)


def test_a_kernel_may_reach_into_its_successor_and_is_cut_where_it_covers_many(analyze, reference):
    r = reference
    events = list(launches(r, 30))
    kernels = [e for e in events if e["kind"] == "kernel"]
    kernels[4]["end"] += 18 * US  # into the next, as with programmatic dependent launch
    assert analyze(events).evidence.clipped == 0

    kernels[10]["end"] = kernels[22]["end"]
    found = analyze(events)

    assert found.evidence.clipped == 1
    assert found.total.device.active_ns == (27 * 5 + 25 + 20) * US
    assert any("cut where the next of their stream begins" in note for note in found.notes)


def test_a_kernel_may_run_beside_many_of_another_stream(analyze, reference):
    r = reference

    found = analyze([*launches(r, 30), r.kernel("long", 10 * US, 500 * US, 30, stream=9)])

    assert found.evidence.clipped == 0


def test_id_0_is_an_id_only_of_a_launch(analyze, reference):
    r = reference
    kernels = [r.kernel("k", 40 * US + i * US, 40 * US + i * US + 500, 0) for i in range(3)]

    queried = analyze([r.call("hipGetDevice", 0, 5, 0), r.op("aten::mm", 0, 50 * US), *kernels])
    launched = analyze([r.call("hipLaunchKernel", 0, 5, 0), kernels[0]])

    assert (queried.coverage.linked, queried.coverage.unlinked) == (0, 3)
    assert launched.coverage.linked == 1


@pytest.mark.parametrize("missing", [0, 1, 3, 30])
def test_replays_of_one_graph_are_held_against_the_fullest(tmp_path, reference, missing):
    r, nodes, events = reference, 40, []
    for replay in range(3):
        at, number = replay * 200 * US, replay + 1
        events.append(r.call("cudaGraphLaunch", at, at + 9 * US, number))
        short = missing if replay == 1 else 0
        events += [
            r.kernel(f"node{i}", at + 20 * US + i * US, at + 20 * US + i * US + 500, number)
            for i in range(nodes - short)
        ]
    trace = json.loads(r.to_json(events))
    for event in trace["traceEvents"]:
        if event["cat"] == "kernel":
            event["args"]["graph id"] = 7
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))

    found = analyze_file(path, floor_ns=5000)

    assert found.evidence.missing_nodes == missing
    assert (found.total.hdbi is None) == (missing > 0.05 * 3 * nodes)
    assert ("other replays of the same graph" in said(found)) == bool(missing)


@pytest.mark.parametrize(
    "category", ["hpu_op", "tpu_runtime", "", "mtia_insight"], ids=["hpu", "tpu", "without category", "mtia"]
)
def test_events_of_a_device_nobody_here_knows_are_named(tmp_path, reference, category):
    trace = json.loads(reference.to_json([reference.op("aten::mm", 0, 30 * US)]))
    trace["traceEvents"] += [{"ph": "X", "cat": category, "name": "work", "pid": 9, "tid": 1, "ts": 5, "dur": 9}]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))

    found = analyze_file(path)

    assert (found.source.device_type, found.total.hdbi, found.total.exposed.delta_ft_ns) == ("unknown", None, None)
    assert f"1 {category or 'without one'}" in said(found)


@pytest.mark.parametrize(
    ("category", "launch", "device_type"),
    [
        ("xpu_runtime", "zeCommandListAppendLaunchKernel", "xpu"),
        ("xpu_driver", "urEnqueueKernelLaunchExp", "xpu"),
        ("privateuse1_driver", "npuLaunchKernel", "unknown"),
    ],
)
def test_launches_of_any_device_without_its_records_are_no_cpu(tmp_path, reference, category, launch, device_type):
    trace = json.loads(reference.to_json(without(list(launches(reference, 6)), "kernel", *range(6))))
    for event in trace["traceEvents"]:
        if event["cat"] == "cuda_runtime":
            event |= {"cat": category, "name": launch}
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))

    found = analyze_file(path)

    assert (found.source.device_type, found.total.hdbi, found.total.taxes.delta_ft_ns) == (device_type, None, None)
    assert "the device's half is missing" in said(found)


def test_ops_alone_beside_a_table_of_devices_are_no_cpu(tmp_path, reference):
    path = tmp_path / "trace.json"
    path.write_text(reference.to_json([reference.op("aten::mm", 0, 9)], deviceProperties=[{"id": 0, "name": "GPU"}]))

    assert (analyze_file(path).source.device_type, analyze_file(path).total.hdbi) == ("cuda", None)


def test_what_no_launch_and_no_kernel_can_be_joined_of_has_no_taxes(analyze, reference):
    r, events = reference, list(launches(reference, 8))
    strange = [e | {"correlation": 900 + i} if e["kind"] == "kernel" else e for i, e in enumerate(events)]
    kernels = [e for e in events if e["kind"] == "kernel"]

    for found in (analyze(strange), analyze(kernels), analyze([*kernels, r.op("aten::mm", 0, 9)])):
        assert (found.total.hdbi, found.total.tklqt_ns, found.total.taxes.delta_ft_ns) == (None, None, None)
        assert "none of 8 device activities could be joined to a launch" in said(found)


def test_a_wait_for_a_queue_of_an_xpu_is_blocked_time(tmp_path, reference):
    r = reference
    trace = json.loads(r.to_json([*launches(r, 4), r.call("urQueueFinish", 100 * US, 160 * US, 99)]))
    for event in trace["traceEvents"]:
        if event["cat"] == "cuda_runtime":
            event["cat"] = "xpu_runtime"
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))

    assert analyze_file(path).total.host.blocked_ns == 60 * US


def test_steps_beside_each_other_and_launches_beside_steps_are_counted(analyze, reference):
    r = reference
    steps = [r.step("1", 0, 90 * US), r.step("2", 40 * US, 130 * US, thread=2)]

    found = analyze([*launches(r, 10), *steps])

    assert len(found.steps) == 1
    assert "second thread, and count as part of that one: 1" in said(found)
    assert "5 of 10 launches lie outside all steps" in said(found)


def test_the_profilers_own_work_is_told_above_a_hundredth_of_the_trace(tmp_path, reference):
    path = tmp_path / "trace.json"
    for us, is_told in ((4, False), (40, True)):
        trace = json.loads(reference.to_json(list(launches(reference, 30))))
        trace["traceEvents"].append(
            {"ph": "X", "cat": "overhead", "name": "flush", "pid": 1, "tid": 1, "ts": 9, "dur": us}
        )
        path.write_text(json.dumps(trace))

        assert ("the profiler's own work took" in said(analyze_file(path))) == is_told


def test_a_second_document_in_a_file_is_left_and_told(tmp_path, reference):
    path, one = tmp_path / "trace.json", reference.to_json(list(launches(reference, 5)))
    path.write_text(one)
    alone = analyze_file(path)
    path.write_text(f"{one}\n{one}")

    assert analyze_file(path).total == alone.total
    assert "the file goes on after its end" in said(analyze_file(path))


def joined(r, path, pids, device_pids, counts, *, first=1):
    """Write one file of processes on one device, each with so many launches; ids begin anew but for `first` more."""
    events = []
    for number, (pid, device_pid, count) in enumerate(zip(pids, device_pids, counts, strict=True)):
        own = json.loads(r.to_json(list(launches(r, count, at=number * 7 * US, first=1 + number * first))))[
            "traceEvents"
        ]
        events += [event | {"pid": device_pid if event["cat"] == "kernel" else pid} for event in own]
    path.write_text(json.dumps({"traceEvents": events}))
    return path


@pytest.mark.parametrize(
    ("pids", "device_pids"),
    [((900, 1000), (0, 0)), (("[TP00] 7", "[TP01] 5"), ("[TP00] 0", "[TP01] 0"))],
    ids=["by id", "by mark"],
)
def test_processes_on_one_device_are_told_apart_or_have_no_verdict(tmp_path, reference, pids, device_pids):
    first = 0 if isinstance(pids[0], str) else 100
    path = joined(reference, tmp_path / "trace.json", pids, device_pids, (4, 6), first=first)

    both, first, second = analyze_file(path), analyze_file(path, rank=0), analyze_file(path, rank=1)

    assert "2 processes launched work in this file" in said(both)
    assert "--rank 0 to 1" in said(both)
    assert (both.total.hdbi, both.total.taxes.orchestration_ns) == (None, None)
    assert [found.coverage.launches for found in (first, second)] == [4, 6]
    assert [found.coverage.unlinked for found in (first, second)] == [0, 0]
    with pytest.raises(TraceFormatError, match="no rank 2 among its 2 processes"):
        analyze_file(path, rank=2)


def test_every_command_asks_for_a_rank_of_a_joined_file_in_one_sentence(tmp_path, reference):
    path = joined(reference, tmp_path / "trace.json", (900, 1000), (0, 0), (4, 6), first=100)
    both = analyze_file(path)

    asked = [*fusion(path).notes, *diff(both, both).notes]
    with pytest.raises(TraceFormatError) as refused:
        plan([path])

    asked.append(str(refused.value))
    assert [note for note in asked if "choose one with --rank 0 to 1" not in note or note.count(":") > 2] == []
    assert len(asked) == 4
    assert (fusion(path).kernels, fusion(path, rank=1).kernels) == (0, 6)
    assert plan([path], rank=1).place["device_type"] == "cuda"


def test_processes_that_share_a_device_and_their_ids_are_refused_by_name(tmp_path, reference):
    path = joined(reference, tmp_path / "trace.json", (900, 1000), (0, 0), (4, 6), first=0)

    with pytest.raises(TraceFormatError, match="2 processes launched with the same ids on 1 devices"):
        analyze_file(path, rank=1)


def test_a_floor_of_a_tenth_of_a_millisecond_is_none_unless_it_was_measured(analyze, reference):
    r = reference
    slow = [
        r.op("aten::mul", 0, 30 * US),
        r.call("cudaLaunchKernel", 4 * US, 20 * US, 1),
        r.kernel("k", 105 * US, 110 * US, 1),
    ]

    assert analyze(slow).total.taxes.delta_kt_ns is None
    assert analyze(slow, floor_ns=5000).total.taxes.delta_kt_ns == 5000


def test_a_damaged_gzip_is_still_refused(reference, tmp_path):
    whole = gzip.compress(reference.to_json(list(launches(reference, 5))).encode())
    path = tmp_path / "trace.json.gz"

    path.write_bytes(whole + b"\0" * 20 + b"more")
    assert "goes on after its end" in said(analyze_file(path))
    path.write_bytes(whole[:-5] + b"\1" + whole[-4:])
    with pytest.raises(TraceFormatError, match="CRC"):
        analyze_file(path)


def test_text_of_a_file_moves_no_cursor():
    assert visible("gemm<4>\x1b[31m\n\u202eab\x9b ΔFT 日本") == "gemm<4>\\x1b[31m\\n\\u202eab\\x9b ΔFT 日本"
