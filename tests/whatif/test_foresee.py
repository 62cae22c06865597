"""What changes would win, foreseen from recordings made by hand, against the rig run with them and no profiler."""

import pytest
from rig.program import Graph, Kernel, Op, Server, Step, Work
from rig.server import run
from rig.servers import tokens_now
from rig.trace import to_json, whole

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Environment, Floor, FloorKind, Floors, Spread
from taxbreak_vllm.model.forecast import Remedy
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.whatif import foresee as foreseeing
from taxbreak_vllm.whatif.foresee import foresee

NUM_STEPS = 8
HERE = Environment(device_type="cuda", device_name="NVIDIA H100 80GB HBM3", torch="", driver="13000")  # the rig
FLAT = Floors(floors=tuple(Floor(kind=FloorKind.GRAPH, spread=Spread(8_000, 1, 9), nodes=n) for n in (1, 512)))


@pytest.fixture
def record(rules, tmp_path):
    def record(server, baselines=None):
        path = tmp_path / "trace.json"
        path.write_text(to_json(whole(run(server))))
        terms = Terms(rules=rules, floor_ns=server.floor_ns, baselines=baselines)
        return Recording(read_events(path, with_calls=baselines is not None), terms)

    return record


@pytest.fixture
def floors(tmp_path):
    with Baselines(tmp_path / "store.sqlite3") as store:
        store.put_floors(HERE, FLAT)
        yield store


def server(*items, **how):
    step = Step((*items, *tokens_now()))
    return Server(steps=(step,) * NUM_STEPS, **{"steps_ahead": 0, "has_output_thread": False, **how})


def half_hidden(*, profiled=1.0, framework=1.0):
    """A step of 100 kernels of 9 µs, of which each needs 11 µs of the host, but what `profiled` adds to that."""
    python, dispatch, launch = (round(ns * profiled) for ns in (4_000 * framework, 4_000 * framework, 3_000))
    op = Op("aten::add", (Work(dispatch), Kernel(9_000, launch)))
    return server(*(Work(python), op) * 100, engine_ns=0, output_ns=0)


def step_ns(server):
    starts = sorted(span.start_ns for span in run(server).spans if span.kind == "step")
    return (starts[-1] - starts[0]) / (len(starts) - 1)


def only(forecasts):
    (forecast,) = forecasts
    return forecast


def phases_of(recording):
    return list(dict.fromkeys(window.phase for window in recording.windows))


def test_what_the_profiler_added_is_divided_out_of_the_host_alone(record):
    """Taken for the plain step, a recording whose host is slower promises more than the device lets anyone win."""
    plain, recorded = half_hidden(), half_hidden(profiled=1.6)
    true_ratio = 1 - step_ns(half_hidden(framework=0.8)) / step_ns(plain)
    recording = record(recorded)
    asked = {Remedy.FASTER: phases_of(recording)}

    told = only(foresee(recording, asked, dilation=step_ns(recorded) / step_ns(plain)))
    naive = only(foresee(recording, asked))

    assert told.refused is None
    assert told.win_ratio == pytest.approx(true_ratio, abs=0.02)
    assert told.low_ratio <= true_ratio <= told.high_ratio
    assert told.plain_ns == pytest.approx(step_ns(plain), rel=0.01)
    assert naive.win_ratio - true_ratio > 0.03


def test_a_graph_is_foreseen_where_graphs_were_measured_and_else_refused(record, floors):
    layer = (Work(4_000), Op("aten::add", (Work(3_000), Kernel(5_000, 4_000), Work(1_000))))
    eager = server(*layer * 40, node_gap_ns=0)
    launch = Graph((5_000,) * 40, call_ns=8_000, first_ns=10_000)
    full = server(Work(4_000), Op("aten::add", (Work(3_000), launch, Work(1_000))), node_gap_ns=0)
    known, unknown = record(eager, floors), record(eager)

    told = only(foresee(known, {Remedy.GRAPH: phases_of(known)}))
    refused = only(foresee(unknown, {Remedy.GRAPH: phases_of(unknown)}))

    true_ratio = 1 - step_ns(full) / step_ns(eager)
    assert told.low_ratio - 0.02 <= true_ratio <= told.high_ratio + 0.02
    assert (refused.win_ratio, refused.refused) == (
        None,
        "what launching a graph costs here was not measured: taxbreak floor",
    )


def test_a_step_that_is_graphs_in_part_is_not_taken_for_one_without(record, floors):
    mixed = record(server(Graph((5_000,) * 9, call_ns=8_000, first_ns=10_000), *(Kernel(5_000, 4_000),) * 9), floors)

    told = only(foresee(mixed, {Remedy.GRAPH: phases_of(mixed)}))

    assert told.refused.startswith("parts of it are graphs already")


def test_which_chains_are_fused_is_not_known_so_it_may_be_none(record):
    first, second = (Op("aten::add", (Work(6_000), Kernel(2_000, 4_000, name))) for name in ("first", "second"))
    recording = record(server(*(first, second) * 30))

    told = only(foresee(recording, {Remedy.FUSED: phases_of(recording)}, chains=[("first", "second")]))

    assert told.low_ratio == 0 < 0.2 < told.win_ratio <= told.high_ratio


def test_a_large_recording_waits_until_someone_asks(record, monkeypatch):
    recording = record(half_hidden())
    monkeypatch.setattr(foreseeing, "MAX_EVENTS", 100)

    told = only(foresee(recording, {Remedy.FASTER: [None]}))

    assert told.refused == "more than 100 ops and kernels are replayed only when asked: taxbreak whatif"


def test_why_a_recording_does_not_tell_comes_with_it_and_others_are_told_all_the_same(record):
    recording = record(half_hidden())

    fused, faster = foresee(
        recording, {Remedy.FUSED: [None], Remedy.FASTER: phases_of(recording)}, chains=[("nothing", "such")]
    )

    assert "no such kernels follow one another" in fused.refused
    assert faster.refused is None
