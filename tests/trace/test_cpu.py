"""The CPU backend: what of an op is dispatch and what is compute, worked out by hand."""

import numpy as np
import pytest

from taxbreak_vllm.trace.cpu import OpCosts, link_cpu


@pytest.fixture
def ops(reference):
    """Three ops that compute nothing (4, 6 and 10 ns), then two that do."""
    op = reference.op
    return [
        op("aten::view", 0, 4),
        op("aten::view", 10, 16),
        op("aten::empty", 20, 30),
        op("aten::mm", 40, 100),
        op("aten::add", 110, 150),
        op("aten::_local_scalar_dense", 112, 118),  # 6 ns, computes nothing
    ]


def test_compute_is_what_remains_after_the_last_child_and_one_dispatch(analyze, ops):
    breakdown = analyze(ops)

    # One dispatch costs the median of 4, 6, 10 and 6: 6. mm computes from 46 to 100, add from 118 + 6 to 150.
    total = breakdown.total
    assert total.device.active_ns == 54 + 26
    assert [(row.op, row.active_ns) for row in total.top] == [("aten::mm", 54), ("aten::add", 26)]
    assert "6 ns" in " ".join(breakdown.notes)


def test_python_and_dispatch_are_the_tax_and_delta_kt_is_zero(analyze, ops):
    total = analyze(ops).total

    # All that passed since the op before computed: Python 4-10, 16-20, 30-40 and dispatch 4 + 6 + 10 + 6 up to 46;
    # then Python 100-110 and dispatch 110-124.
    assert total.taxes.delta_ft_ns == (6 + 4 + 10) + (4 + 6 + 10 + 6) + 10 + 14
    assert total.taxes.delta_ct_ns is None
    assert total.taxes.delta_kt_ns == 0
    assert total.taxes.orchestration_ns == 70
    assert total.hdbi == 80 / (80 + 70)


def test_the_host_is_blocked_while_its_own_device_computes(analyze, ops):
    total = analyze(ops).total

    assert total.window_ns == 150
    assert total.host.blocked_ns == 80
    assert total.host.dispatch_ns == 4 + 6 + 10 + 6 + 14
    assert total.host.python_ns == 6 + 4 + 10 + 10
    # 100 to 124: the device idles, and what is waited for is Python and dispatch.
    assert total.device.idle.host_ns == 24
    assert total.exposed.delta_ft_ns == 24
    assert total.device.idle.edge_ns == 46


def test_launch_figures_do_not_exist_on_the_cpu(analyze, ops):
    breakdown = analyze(ops)

    assert breakdown.source.device_type == "cpu"
    assert breakdown.total.tklqt_ns is None
    assert breakdown.total.tklqt_per_kernel_ns is None
    assert breakdown.total.launches is None
    assert breakdown.total.kernels == 2


def test_a_custom_op_around_ops_that_compute_is_glue(analyze, reference):
    op = reference.op
    breakdown = analyze(
        [
            op("vllm::unified_attention", 0, 100),  # Python around the one that computes
            op("_C::paged_attention", 10, 90),
            op("_C::onednn_mm", 100, 200),  # reads a scalar, then computes
            op("aten::_local_scalar_dense", 101, 103),
            op("aten::linear", 200, 300),  # ATen's own ops compute around each other
            op("aten::addmm", 210, 280),
        ]
    )

    # The dispatch cost is 2, the one op that computes nothing: 12 to 90, 105 to 200, 212 to 280, 282 to 300.
    assert {row.op: row.active_ns for row in breakdown.total.top} == {
        "_C::paged_attention": 78,
        "_C::onednn_mm": 95,
        "aten::addmm": 68,
        "aten::linear": 18,
    }


def test_a_measured_dispatch_cost_goes_before_the_traces_own(read, rules, ops):
    costs = OpCosts(np.full(len(ops), 20), np.full(len(ops), -1))

    _, activities, dispatches, _ = link_cpu(read(ops), rules.is_metadata_op, costs)

    assert activities.start_ns.tolist() == [60, 138]
    assert dispatches.launch_ns.tolist() == [60, 138]


def test_an_op_no_longer_than_one_dispatch_computes_nothing(analyze, reference):
    op = reference.op

    total = analyze([op("aten::view", 0, 10), op("aten::mm", 20, 30), op("aten::mm", 40, 51)]).total

    assert (total.kernels, total.device.active_ns) == (1, 1)


def test_ops_of_two_threads_compute_at_once_on_one_device(analyze, reference):
    op = reference.op

    total = analyze([op("aten::mm", 0, 60, thread=1), op("aten::mm", 40, 100, thread=2)]).total

    assert total.device.kernel_sum_ns == 120
    assert total.device.active_ns == 100


def test_runtime_calls_that_launch_nothing_leave_it_the_cpu(analyze, reference, ops):
    assert analyze([*ops, reference.call("cudaGetDeviceCount", 0, 2)]).source.device_type == "cpu"
