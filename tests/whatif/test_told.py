"""Waits that a recording tells, beside what is inferred where it is silent."""

from dataclasses import replace

import numpy as np
import pytest
from rig.program import COMPUTE, COPIES, Copy, Kernel, Op, Record, Server, Step, Synchronize, Wait, Work
from rig.server import run
from rig.servers import device_bound, random_server
from rig.trace import bracket, to_json, whole

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.whatif.build import build
from taxbreak_vllm.whatif.graph import EdgeKind

SIDE = COPIES + 1


@pytest.fixture
def model_of(rules, tmp_path):
    def model_of(trace):
        path = tmp_path / "trace.json"
        path.write_text(to_json(trace))
        recording = Recording(read_events(path), Terms(rules=rules, floor_ns=6_000))
        return build(recording.measured, recording.shown_windows)

    return model_of


def op(ns, stream=COMPUTE):
    return Op("aten::add", (Work(2_000), Kernel(ns, 4_000, stream=stream)))


def waited_for(model, name):
    """Return the streams of what the calls of this name wait for, and how long after its end each returned."""
    s = model.sources
    a, names = s.measured.activities, s.measured.events.names
    found = []
    for call, awaited in zip(s.blocking.call.tolist(), s.blocking.awaited.tolist(), strict=True):
        if names[s.calls.name[call]] == name and awaited >= 0:
            found.append((int(a.stream[awaited]), int(s.calls.end_ns[call] - a.end_ns[awaited])))
    return found


def one_of_two(event):
    """Two streams end within 100 ns of one another; the host waits for one of them."""
    fork = (Record("fork", 1_000), Wait("fork", 1_000, SIDE), op(60_100, SIDE), Record("side", 1_000, SIDE))
    step = Step((Work(5_000), op(4_000), *fork, op(53_000), Record("main", 1_000), Synchronize(2_000, event)))
    return Server(steps=(step,) * 4, steps_ahead=0, has_output_thread=False, return_ns=30_000)


@pytest.mark.parametrize(("event", "stream"), [("main", COMPUTE), ("side", SIDE)])
def test_an_event_that_is_told_is_the_one_waited_for(model_of, event, stream):
    model = model_of(whole(run(one_of_two(event)), with_syncs=True))

    assert waited_for(model, "cudaEventSynchronize") == [(stream, 30_000)] * 4


def test_streams_wait_for_what_the_event_holds_and_for_nothing_else(model_of):
    """Inferred, the copy would wait for all other streams; told, for the event of one."""
    items = (op(50_000, SIDE), op(10_000), Record("main", 1_000), Wait("main", 1_000, COPIES))
    step = Step((Work(5_000), *items, Copy(2_000, 3_000, stream=COPIES), Synchronize(2_000)))
    it = run(Server(steps=(step,) * 3, steps_ahead=0, has_output_thread=False))

    def pairs(trace):
        model = model_of(trace)
        a, graph = model.sources.measured.activities, model.graph
        stream = np.full(len(graph.at_ns), -1)
        stream[graph.activity_node] = a.stream
        rows = graph.edges.kind == EdgeKind.EVENT
        between = zip(stream[graph.edges.source[rows]].tolist(), stream[graph.edges.target[rows]].tolist(), strict=True)
        return set(between)

    assert pairs(whole(it, with_syncs=True)) == {(COMPUTE, COPIES)}
    assert pairs(whole(it)) != {(COMPUTE, COPIES)}


def test_an_event_holds_what_its_stream_waited_for_too(model_of):
    """Nothing was given to the stream between its wait and the event."""
    chain = (op(50_000), Record("a", 1_000), Wait("a", 1_000, SIDE), Record("b", 1_000, SIDE))
    step = Step((Work(5_000), op(3_000, SIDE), *chain, Synchronize(2_000, "b")))
    server = Server(steps=(step,) * 3, steps_ahead=0, has_output_thread=False, return_ns=7_000)

    model = model_of(whole(run(server), with_syncs=True))

    assert waited_for(model, "cudaEventSynchronize") == [(COMPUTE, 7_000)] * 3


def test_a_wait_for_what_was_before_the_recording_is_pinned(model_of):
    server = replace(device_bound(6), has_output_thread=False)  # after each step it takes the tokens of the one before
    model = model_of(bracket(run(server), 2, 5, with_syncs=True))
    blocking, points = model.sources.blocking, model.sources.points

    assert np.count_nonzero(blocking.is_carried) == 1
    pinned = model.graph.is_pinned[model.graph.point_node[points.call_end[blocking.call[blocking.is_carried]]]]
    assert pinned.all()


@pytest.mark.parametrize("record", ["the newest", "one that comes later"])
def test_a_record_that_the_calls_contradict_is_not_believed(model_of, record):
    """Kineto keeps one record for each event, which may be another than that waited for."""
    trace = whole(run(one_of_two("main")), with_syncs=True)
    ids = [span.correlation for span in trace.spans if span.name == "cudaEventRecord"]
    wrong = ids[-1] if record == "the newest" else max(span.correlation for span in trace.spans) + 1
    syncs = tuple(replace(sync, record=wrong) if sync.name == "Event Sync" else sync for sync in trace.syncs)

    told, inferred = model_of(replace(trace, syncs=syncs)), model_of(replace(trace, syncs=()))

    first = waited_for(told, "cudaEventSynchronize")[:3]
    assert first == waited_for(inferred, "cudaEventSynchronize")[:3]


def test_calls_that_record_events_need_not_be_in_the_trace(model_of):
    """Some versions of Kineto leave them out; ids count calls all the same."""
    trace = whole(run(one_of_two("main")), with_syncs=True)
    spans = tuple(span for span in trace.spans if span.name != "cudaEventRecord")

    assert waited_for(model_of(replace(trace, spans=spans)), "cudaEventSynchronize") == [(COMPUTE, 30_000)] * 4


def test_whatever_the_server_a_told_wait_ends_as_long_after_its_event_as_the_machine_takes(model_of):
    for seed in range(12):
        server = random_server(seed)
        model = model_of(whole(run(server), with_syncs=True))
        blocking, calls, a = model.sources.blocking, model.sources.calls, model.sources.measured.activities
        known = blocking.awaited >= 0
        late_ns = calls.end_ns[blocking.call[known]] - a.end_ns[blocking.awaited[known]]
        waited = a.end_ns[blocking.awaited[known]] + server.return_ns > calls.start_ns[blocking.call[known]] + 50_000

        assert (late_ns[waited] == server.return_ns).all()
