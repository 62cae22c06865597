"""Faults planted in a graph, one kind of edge left out: gates find them, or answers are none that the rig gives."""

from dataclasses import replace

import pytest
from rig.changed import changed
from rig.server import run
from rig.servers import device_bound, full_queue, host_bound
from rig.trace import to_json, whole

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.whatif.build import build
from taxbreak_vllm.whatif.changes import HOST, scale_host, scale_kernels
from taxbreak_vllm.whatif.gates import find_gates
from taxbreak_vllm.whatif.graph import EdgeKind
from taxbreak_vllm.whatif.replay import replay

FAMILIES = [family for family in Family if family is not Family.COLLECTIVE]
SERVERS = {
    EdgeKind.HOST: host_bound(),
    EdgeKind.LAUNCH: host_bound(),
    EdgeKind.STREAM: device_bound(),
    EdgeKind.WAIT: device_bound(),
    EdgeKind.ROOM: full_queue(),
    EdgeKind.HANDOFF: device_bound(),
    EdgeKind.EVENT: device_bound(),
}


def failures(model, server):
    """Return the gates that fail, and the changes whose answer is off by more than 2 %."""
    calibrated = model.graph.calibrated()
    found = [gate.name for gate in find_gates(model, calibrated, replay(model.graph)) if not gate.passes]
    for host, kernels in ((2.0, 1.0), (0.5, 1.0), (1.0, 1.5), (1.0, 0.3)):
        graph = scale_kernels(calibrated, model.sources, dict.fromkeys(FAMILIES, kernels))
        graph = scale_host(graph, dict.fromkeys(HOST, host))
        predicted_ns = int((replay(graph) + graph.duration_ns).max() - graph.at_ns.min())
        it = run(changed(server, host=host, kernels=kernels))
        true_ns = max(end.end_ns for end in (*it.spans, *it.activities)) - min(span.start_ns for span in it.spans)
        if abs(predicted_ns - true_ns) > 0.02 * true_ns:
            found.append(f"host {host}, kernels {kernels}: {predicted_ns / true_ns:.3f}")
    return found


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind.name.lower())
def test_a_kind_of_edge_that_is_left_out_is_found(rules, tmp_path, kind):
    server, path = SERVERS[kind], tmp_path / "trace.json"
    path.write_text(to_json(whole(run(server))))
    recording = Recording(read_events(path), Terms(rules=rules, floor_ns=server.floor_ns))
    model = build(recording.measured, recording.shown_windows)
    edges = model.graph.edges
    assert (edges.kind == kind).any()
    faulty = replace(model, graph=model.graph.with_edges(edges.chosen(edges.kind != kind)))

    assert not failures(model, server)
    assert failures(faulty, server)
