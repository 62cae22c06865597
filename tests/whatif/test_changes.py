"""Each change to the launch path, on servers made by hand, against the rig run with it."""

from dataclasses import replace

import numpy as np
import pytest
from rig.program import Graph, Kernel, Op, Server, Step, Synchronize, Work
from rig.server import run
from rig.servers import device_bound, tokens_later, tokens_now
from rig.trace import to_json, whole

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.whatif.build import build
from taxbreak_vllm.whatif.changes import Change, RefusedError, one_step_ahead
from taxbreak_vllm.whatif.launches import capture
from taxbreak_vllm.whatif.predict import predict
from taxbreak_vllm.whatif.replay import replay

LAYER = (Work(4_000), Op("aten::add", (Work(3_000), Kernel(5_000, 4_000, "first"), Work(1_000))))
NEXT = (Work(2_000), Op("aten::mul", (Work(3_000), Kernel(6_000, 4_000, "second"), Work(1_000))))


@pytest.fixture
def record(rules, tmp_path):
    def record(server):
        path = tmp_path / "trace.json"
        path.write_text(to_json(whole(run(server))))
        return Recording(read_events(path), Terms(rules=rules, floor_ns=server.floor_ns))

    return record


def end_ns(server):
    it = run(server)
    return max([span.end_ns for span in it.spans] + [activity.end_ns for activity in it.activities])


def eager(*items, steps=6, **how):
    step = Step((*items, *tokens_now()))
    return Server(steps=(step,) * steps, **{"steps_ahead": 0, "has_output_thread": False, **how})


def test_a_call_that_does_not_wait_lets_the_host_go_on(record):
    server = eager(*LAYER * 5, Synchronize(1_500), *NEXT * 5)
    answer = predict(record(server), Change(no_sync=("DeviceSynchronize",)), named="")

    assert answer.window.predicted_ns == pytest.approx(end_ns(eager(*LAYER * 5, *NEXT * 5)), rel=0.02)


def test_a_call_to_leave_out_must_be_there(record):
    with pytest.raises(SettingsError, match=r"no blocking call.*cudaMemcpyAsync"):
        predict(record(eager(*LAYER * 3)), Change(no_sync=("hipStream",)), named="")


def test_a_lower_floor_is_taken_off_each_launch_on_an_idle_device(record):
    server = eager(*LAYER * 20, floor_ns=6_000, latency_ns=2_000)
    answer = predict(record(server), Change(floor_ns=5_000), named="")

    lower = replace(server, latency_ns=1_000)
    assert answer.window.predicted_ns == pytest.approx(end_ns(lower), rel=0.02)


def test_fused_kernels_need_one_launch_and_keep_their_time(record):
    server = eager(*(*LAYER, *NEXT) * 20)
    answer = predict(record(server), Change(fused=(("first", "second"),)), named="")

    fused = Op("aten::add", (Work(3_000), Kernel(11_000, 4_000, "first"), Work(1_000)))
    assert answer.window.predicted_ns == pytest.approx(end_ns(eager(*(Work(4_000), fused) * 20)), rel=0.05)
    assert any("not known" in note for note in answer.notes)


def test_kernels_to_fuse_must_follow_one_another(record):
    with pytest.raises(SettingsError, match="no such kernels follow one another"):
        predict(record(eager(*LAYER * 5)), Change(fused=(("first", "third"),)), named="")


def test_a_graph_costs_what_was_measured_of_graphs_and_runs_its_nodes_one_after_the_other(record):
    server = eager(*LAYER * 20, node_gap_ns=0)
    model = build((recording := record(server)).measured, recording.shown_windows)
    graph = model.graph.calibrated()
    changed = capture(graph, model.sources, ((1, 8_000), (512, 8_000)), gap_ns=0)

    launch = Graph((5_000,) * 20, call_ns=8_000, first_ns=10_000)
    full = eager(Work(4_000), Op("aten::add", (Work(3_000), launch, Work(1_000))), node_gap_ns=0)
    predicted_ns = int((replay(changed) + changed.duration_ns).max() - graph.at_ns.min())
    assert predicted_ns == pytest.approx(end_ns(full), rel=0.05)


def test_without_measured_graphs_a_full_graph_is_refused(record):
    answer = predict(record(eager(*LAYER * 5)), Change(full_graph=True), named="--graph full")

    assert answer.window is None
    assert "taxbreak floor" in answer.refused


def test_a_step_ahead_hides_the_host_behind_the_device(record):
    kernels = (Work(20_000), Op("aten::add", (Kernel(150_000, 4_000),))) * 4
    answer = predict(record(eager(*kernels, Work(200_000), steps=10)), Change(one_step_ahead=True), named="--async")

    assert answer.refused is None
    assert answer.steps[0].predicted_ns < 0.9 * answer.steps[0].observed_ns
    assert any("bound" in note for note in answer.notes)


def test_a_server_that_is_ahead_cannot_be_put_ahead(record):
    recording = record(Server(steps=(Step(LAYER * 3, tokens_later()),) * 4))
    model = build(recording.measured, recording.shown_windows)

    with pytest.raises(RefusedError, match="--async"):
        one_step_ahead(model.graph, model.sources)


def test_every_node_keeps_its_place_whatever_the_change(record):
    recording = record(device_bound(3))
    model = build(recording.measured, recording.shown_windows)

    assert model.graph.num_backward == 0
    assert (np.diff(model.graph.at_ns) >= 0).all()
    assert (model.graph.edges.source < model.graph.edges.target).all()
