"""One pass over graphs of a few nodes, whose times can be checked by eye."""

import numpy as np
import pytest

from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.changes import scale_host
from taxbreak_vllm.whatif.graph import EdgeKind, Graph, make_edges
from taxbreak_vllm.whatif.replay import replay


def ints(*values):
    return np.array(values, dtype=np.intp)


@pytest.fixture
def graph():
    """A point at 0; a call at 10; its kernel of 50 from 14 on; a second kernel, behind it, observed 3 late, at 70."""
    at_ns = np.array([0, 10, 14, 70], dtype=np.int64)
    python = np.zeros((len(HostClass), 1), dtype=np.int64)
    python[HostClass.PYTHON] = 10
    edges = make_edges(ints(0), ints(1), EdgeKind.HOST, host_ns=python)
    edges = edges.plus(make_edges(ints(1, 1), ints(2, 3), EdgeKind.LAUNCH, fixed_ns=4))
    edges = edges.plus(make_edges(ints(2), ints(3), EdgeKind.STREAM, fixed_ns=3, from_end=True))
    is_activity = np.array([False, False, True, True])
    return Graph(
        at_ns=at_ns,
        duration_ns=np.array([0, 0, 50, 20], dtype=np.int64),
        is_activity=is_activity,
        is_pinned=np.zeros(4, dtype=bool),
        point_node=ints(0, 1),
        activity_node=ints(2, 3),
        edges=edges,
    )


def test_a_node_happens_when_the_last_of_its_edges_lets_it(graph):
    assert replay(graph).tolist() == [0, 10, 14, 67]


def test_calibrated_it_gives_what_was_observed(graph):
    assert replay(graph.calibrated()).tolist() == [0, 10, 14, 70]


def test_a_later_first_point_moves_all_that_follows(graph):
    assert replay(graph.calibrated(), first_later_ns=100).tolist() == [100, 110, 114, 170]


def test_host_work_scales_and_latencies_do_not(graph):
    twice = scale_host(graph, {HostClass.PYTHON: 2.0})

    assert replay(twice).tolist() == [0, 20, 24, 77]


def test_a_pinned_node_does_not_happen_before_it_was_observed(graph):
    held = Graph(
        **{
            name: getattr(graph, name)
            for name in ("at_ns", "duration_ns", "is_activity", "point_node", "activity_node")
        },
        is_pinned=np.array([False, False, False, True]),
        edges=graph.edges,
    )

    assert replay(scale_host(held, {HostClass.PYTHON: 0.0})).tolist() == [0, 0, 4, 70]
