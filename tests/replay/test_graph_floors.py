"""T_sys_graph(n) off made-up traces: from the launch call to the end of the last node, less the time the nodes run."""

import pytest

pytest.importorskip("torch", reason="floors need torch")

from taxbreak_vllm.replay.floors import _graph_latencies
from taxbreak_vllm.trace.dispatches import link


def graph(reference, at, correlation, starts):
    """A graph launch of 10 ns, with nodes of 5 ns that start at these times after it."""
    return [
        reference.call("cudaGraphLaunch", at, at + 10, correlation),
        *(reference.kernel("nothing", at + start, at + start + 5, correlation) for start in starts),
    ]


def latencies(read, events, nodes):
    _, activities, dispatches = link(read(events))
    return _graph_latencies(activities, dispatches, nodes)


def test_nodes_count_their_gaps_and_not_what_they_run(reference, read):
    events = graph(reference, 100, 1, [40, 47, 54])

    assert latencies(read, events, 3) == [40 + 2 + 2]


def test_one_node_is_a_launch_to_the_start_of_its_kernel(reference, read):
    assert latencies(read, graph(reference, 100, 1, [40]), 1) == [40]


def test_a_kernel_beside_the_graph_and_a_graph_recorded_in_part_do_not_count(reference, read):
    beside = [reference.call("cudaLaunchKernel", 10, 20, 7), reference.kernel("fill", 30, 35, 7)]
    events = [*beside, *graph(reference, 100, 1, [40]), *graph(reference, 300, 2, [40, 47])]

    assert latencies(read, events, 1) == [40]
    assert latencies(read, events, 2) == [42]
    assert latencies(read, events, 3) == []
