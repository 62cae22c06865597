"""Each dispatch joined to the call it came from: its root op's and its leaf op's, with its kernel."""

import json

import numpy as np
import pytest

from taxbreak_vllm.trace.calls import Call, Input, Kernel, signature
from taxbreak_vllm.trace.dispatches import link
from taxbreak_vllm.trace.events import EventKind
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.trace.signatures import sign, sign_ops

GRID = {"grid": [2, 1, 1], "block": [64, 1, 1], "shared memory": 0, "registers per thread": 16}


@pytest.fixture
def signed(reference, tmp_path):
    """Write made-up events with arguments of ops and kernels, by name, and sign their dispatches in launch order."""

    def signed(events, arguments):
        tree = json.loads(reference.to_json(events))
        for event in tree["traceEvents"]:
            event["args"] |= arguments.get(event["name"], {})
        path = tmp_path / "trace.json"
        path.write_text(json.dumps(tree))
        columns = read_events(path, with_calls=True)
        host, activities, dispatches = link(columns)
        found = sign(columns, host, activities, dispatches)
        order = np.argsort(dispatches.launch_ns)
        return found, [None if i < 0 else found.distinct[i] for i in found.of_dispatch[order].tolist()]

    return signed


def shapes(*dims):
    return {"Input Dims": [list(d) for d in dims], "Input type": ["float"] * len(dims)}


def call(op, *dims):
    return Call(op, tuple(Input("float", d) for d in dims))


def test_a_dispatch_is_its_root_op_its_leaf_op_and_its_kernel(signed, reference):
    r = reference
    found, (first,) = signed(
        [
            r.op("aten::linear", 0, 50),
            r.op("aten::t", 2, 5),
            r.op("aten::addmm", 10, 40),
            r.call("cudaLaunchKernel", 20, 30, 1),
            r.kernel("gemm", 40, 60, 1),
        ],
        {"aten::linear": shapes((4, 8), (6, 8)), "aten::addmm": shapes((6,), (4, 8)), "gemm": GRID},
    )

    assert first.calls == (call("aten::linear", (4, 8), (6, 8)), call("aten::addmm", (6,), (4, 8)))
    assert first.kernel == Kernel("gemm", (2, 1, 1), (64, 1, 1), 0, 16)
    assert first.keys == tuple(signature(one, first.kernel) for one in first.calls)
    assert len(found.distinct) == 1


def test_alike_dispatches_share_one_and_an_op_of_one_level_is_root_and_leaf(signed, reference):
    r = reference
    events = [
        event
        for at, id_ in ((0, 1), (100, 2))
        for event in (
            r.op("aten::neg", at, at + 20),
            r.call("cudaLaunchKernel", at + 5, at + 10, id_),
            r.kernel("neg", at + 30, at + 40, id_),
        )
    ]

    found, (first, second) = signed(events, {"aten::neg": shapes((4,)), "neg": GRID})

    assert first is second
    assert first.calls == (call("aten::neg", (4,)),)
    assert found.of_dispatch.tolist() == [0, 0]


def test_a_copy_has_its_calls_alone_and_a_launch_without_an_op_and_a_graph_have_none(signed, reference):
    r = reference
    _, (copy, triton, graph) = signed(
        [
            r.op("aten::copy_", 0, 20),
            r.call("cudaMemcpyAsync", 5, 10, 1),
            r.memcpy("Memcpy HtoD (Pinned -> Device)", 30, 40, 1),
            r.call("cuLaunchKernel", 50, 55, 2),
            r.kernel("triton_", 60, 70, 2),
            r.op("vllm::graph", 80, 100),
            r.call("cudaGraphLaunch", 85, 90, 3),
            r.kernel("node", 100, 110, 3),
        ],
        {"aten::copy_": shapes((4,), (4,)), "triton_": GRID, "node": GRID},
    )

    assert (copy.calls, copy.kernel) == ((call("aten::copy_", (4,), (4,)),), Kernel())
    assert triton is None
    assert graph is None


def test_two_kernels_of_one_op_are_two_signatures(signed, reference):
    r = reference
    _, (first, second) = signed(
        [
            r.op("aten::softmax", 0, 50),
            r.call("cudaLaunchKernel", 5, 10, 1),
            r.call("cudaLaunchKernel", 15, 20, 2),
            r.kernel("a", 30, 40, 1),
            r.kernel("b", 40, 50, 2),
        ],
        {"aten::softmax": shapes((4,)), "a": GRID, "b": GRID},
    )

    assert first.calls == second.calls
    assert (first.kernel.name, second.kernel.name) == ("a", "b")
    assert first.keys != second.keys


def test_an_op_of_the_cpu_backend_is_its_own_kernel(reference, tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(reference.to_json([reference.op("aten::mm", 0, 5), reference.op("aten::add", 10, 15)] * 2))
    events = read_events(path, with_calls=True)
    ops = events.rows(EventKind.OP)

    distinct, index = sign_ops(events, ops)

    assert [distinct[i].calls[0].op for i in index] == ["aten::mm", "aten::add"] * 2
    assert {one.kernel for one in distinct} == {Kernel()}


def test_every_dispatch_of_a_real_trace_is_joined_to_its_own_ops_and_kernel(trace_path):
    events = read_events(trace_path, with_calls=True)
    host, activities, dispatches = link(events)

    found = sign(events, host, activities, dispatches)

    is_signed = (dispatches.root >= 0) & ~dispatches.is_graph
    assert ((found.of_dispatch >= 0) == is_signed).all()
    for dispatch in np.flatnonzero(is_signed).tolist():
        own = found.distinct[found.of_dispatch[dispatch]]
        assert own.calls[-1].op == events.names[dispatches.leaf_name[dispatch]]
        first = dispatches.first_kernel[dispatch]
        assert own.kernel.name == ("" if first < 0 else events.names[activities.name[first]])
    assert len(set(found.distinct)) == len(found.distinct)
