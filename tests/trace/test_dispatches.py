"""Launch rules, blocking calls, correlation ids and the ops around launches."""

import numpy as np
import pytest

from taxbreak_vllm.trace.dispatches import containing, find_roots, innermost, link, next_outer

LAUNCHES = [
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cudaLaunchKernelExC_v11060",
    "cudaLaunchCooperativeKernel",
    "cudaLaunch",
    "cudaGraphLaunch",
    "cudaLaunchCooperativeKernelMultiDevice",
    "cudaLaunchKernel_ptsz",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuLaunchCooperativeKernel",
    "cuLaunchGrid",
    "cuGraphLaunch",
    "cuGraphLaunch_ptsz",
    "hipLaunchKernel",
    "hipExtLaunchKernel",
    "hipModuleLaunchKernel",
    "hipLaunchByPtr",
    "hipExtModuleLaunchKernel",
    "hipLaunchCooperativeKernel",
    "hipGraphLaunch",
    "hipExtLaunchMultiKernelMultiDevice",
    "hipHccModuleLaunchKernel",
    "hipLaunchKernelExC",
]
NO_LAUNCHES = [
    "cudaMemcpyAsync",
    "cudaMalloc",
    "cudaMallocAsync",
    "cudaFreeAsync",
    "cudaLaunchHostFunc",
    "cuLaunchHostFunc",
    "hipLaunchHostFunc",
    "cudaEventRecord",
    "cudaStreamSynchronize",
    "cudaGraphInstantiate",
    "cudaGraphUpload",
    "cudaFuncSetAttribute",
    "cudaStreamWaitEvent",
    "hipMalloc",
    "hipEventRecord",
    "hipConfigureCall",
    "cudaOccupancyMaxActiveClusters",
    "INVALID",
    "myLaunchKernel",
]
BLOCKING = [
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cuEventSynchronize",
    "hipStreamSynchronize",
    "hipDeviceSynchronize",
    "hipEventSynchronize",
    "cudaMemcpy",
    "cudaMemcpy2D",
    "cudaMemcpyPeer",
    "cudaMemcpyToSymbol",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoD_v2",
    "hipMemcpy",
    "hipMemcpyWithStream",
    "hipMemcpyDtoH",
    "hipDrvMemcpy3D",
]
NOT_BLOCKING = [
    "cudaMemcpyAsync",
    "cudaMemcpy2DAsync",
    "cudaMemcpy3DAsync_ptsz",
    "cudaMemcpyPeerAsync",
    "cuMemcpyHtoDAsync_v2",
    "hipMemcpyAsync",
    "hipMemcpyHtoDAsync",
    "cudaMemsetAsync",
    "cuMemsetD32Async",
    "cudaMallocAsync",
    "cudaEventQuery",
    "cudaStreamWaitEvent",
    "cudaGraphAddMemcpyNode",
    "cudaGraphExecMemcpyNodeSetParams",
    "cudaLaunchKernel",
]


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_call_is_a_launch_by_the_rule_of_its_name(read, reference, name):
    host, _, _ = link(read([reference.op("aten::mm", 0, 10), reference.call(name, 0, 10, 1)]))

    assert len(host.unanswered_ns) == 1
    assert host.call_is_launch.tolist() == [True]
    assert len(host.lost_graph_ns) == ("Graph" in name)


@pytest.mark.parametrize("name", NO_LAUNCHES)
def test_a_call_of_another_name_is_none(read, reference, name):
    host, _, _ = link(read([reference.op("aten::mm", 0, 10), reference.call(name, 0, 10, 1)]))

    assert len(host.unanswered_ns) == 0
    assert host.call_is_launch.tolist() == [False]


@pytest.mark.parametrize("name", [*BLOCKING, *NOT_BLOCKING])
def test_a_call_blocks_by_the_rule_of_its_name(read, reference, name):
    host, _, _ = link(read([reference.op("aten::mm", 0, 10), reference.call(name, 0, 10, 1)]))

    assert host.call_is_blocking.tolist() == [name in BLOCKING]


@pytest.mark.parametrize(
    ("copy", "copy_end", "waited"),
    [
        ("Memcpy DtoH (Device -> Pageable)", 59, True),  # returned at 60, after its copy
        ("Memcpy DtoH (Device -> Pageable)", 60, True),  # with it
        ("Memcpy DtoH (Device -> Pinned)", 61, False),  # before it
        ("Memcpy HtoD (Pageable -> Device)", 50, False),  # to the device: nobody waited for a result
        ("CopyDeviceToHost", 50, True),  # as ROCm has it
    ],
)
def test_an_async_copy_to_the_host_blocks_where_it_returned_after_its_own_copy(
    analyze, reference, copy, copy_end, waited
):
    r = reference
    host = analyze([r.call("cudaMemcpyAsync", 0, 60, 1), r.memcpy(copy, 40, copy_end, 1)]).total.host

    assert (host.blocked_ns, host.runtime_ns) == ((60, 0) if waited else (0, 60))


def test_a_graph_launch_that_outlasts_its_copy_to_the_host_did_not_wait_for_it(read, reference):
    r = reference
    events = [r.call("cudaGraphLaunch", 0, 60, 1), r.kernel("k", 10, 20, 1), r.memcpy("Memcpy DtoH", 20, 30, 1)]

    host, _, _ = link(read(events))

    assert host.call_is_blocking.tolist() == [False]


def test_activities_join_their_launch_by_correlation_whatever_its_name(read, reference):
    r = reference
    events = [
        r.call("cudaLaunchKernel", 0, 5, 1),
        r.call("cudaMemcpyAsync", 10, 15, 2),
        r.call("someVendorEnqueue", 20, 25, 3),
        r.kernel("late", 40, 50, 3),
        r.kernel("first", 30, 35, 1),
        r.memcpy("Memcpy HtoD (Pinned -> Device)", 33, 36, 2),
        r.kernel("unlinked", 60, 70, 9),
        r.kernel("without an id", 80, 90),
    ]

    host, activities, dispatches = link(read(events))

    assert activities.start_ns.tolist() == [30, 33, 40, 60, 80]
    assert activities.dispatch.tolist() == [0, 1, 2, -1, -1]
    assert dispatches.launch_ns.tolist() == [0, 10, 20]
    assert dispatches.num_kernels.tolist() == [1, 0, 1]
    assert dispatches.first_kernel.tolist() == [0, -1, 2]
    assert host.call_is_launch.tolist() == [True, False, True]  # by what it did


def test_correlation_ids_below_zero_join_nothing(read, reference):
    _, activities, dispatches = link(
        read([reference.call("cudaLaunchKernel", 0, 5, -1), reference.kernel("k", 10, 20, -1)])
    )

    assert activities.dispatch.tolist() == [-1]
    assert len(dispatches) == 0


def test_no_activity_comes_of_a_call_that_only_waits_whatever_id_it_carries(read, reference):
    _, activities, dispatches = link(
        read([reference.call("cudaDeviceSynchronize", 0, 50, 0), reference.kernel("k", 10, 20, 0)])
    )

    assert activities.dispatch.tolist() == [-1]
    assert len(dispatches) == 0


@pytest.mark.parametrize("ids", [(None, 1), (1, 2), (1, 1)])
def test_a_launch_around_one_that_was_answered_has_not_lost_its_work(read, reference, ids):
    outer, inner = ids
    host, _, dispatches = link(
        read(
            [
                *(reference.call("cudaGraphLaunch", 0, 50, outer), reference.call("cuGraphLaunch", 10, 40, inner)),
                *(reference.kernel("k", 60, 70, inner), reference.kernel("k", 80, 90, inner)),
            ]
        )
    )

    assert len(dispatches) == 1
    assert dispatches.num_kernels.tolist() == [2]
    assert len(host.unanswered_ns) == len(host.lost_graph_ns) == 0


def test_of_calls_with_one_correlation_id_the_launch_is_it(read, reference):
    call = reference.call
    events = [call("cudaLaunchKernel", 0, 9, 7), call("cudaEventRecord", 20, 25, 7), reference.kernel("k", 30, 40, 7)]

    _, _, dispatches = link(read(events))

    assert dispatches.launch_ns.tolist() == [0]


def test_one_graph_launch_has_all_its_nodes(read, reference):
    r = reference
    events = [r.call("cudaGraphLaunch", 0, 9, 7), r.memset(10, 11, 7)]
    events += [r.kernel("k", 20 + n, 21 + n, 7, stream=n) for n in range(5)]

    _, activities, dispatches = link(read(events))

    assert (dispatches.num_activities.tolist(), dispatches.num_kernels.tolist()) == ([6], [5])
    assert activities.start_ns[dispatches.first].tolist() == [10]
    assert activities.start_ns[dispatches.first_kernel].tolist() == [20]


def test_a_driver_call_inside_a_launch_that_has_its_kernel_is_not_a_lost_launch(read, reference):
    r = reference
    events = [
        r.call("cudaLaunchKernel", 0, 20, 1),
        r.call("cuLaunchKernel", 5, 15, 2),  # the same launch, one layer down
        r.call("cuLaunchKernel", 15, 25, 3),  # another one
        r.call("cuLaunchKernel", 5, 15, 4, thread=2),  # and another
        r.kernel("k", 30, 40, 1),
    ]

    host, _, _ = link(read(events))

    assert len(host.unanswered_ns) == 2


def test_the_leaf_op_is_the_innermost_around_the_launch(analyze, reference):
    r = reference
    ops = [
        r.op("aten::linear", 0, 100),
        r.op("aten::t", 5, 10),
        r.op("aten::addmm", 20, 90),
        r.op("aten::mm", 20, 90),  # identical span: the later in the file is inside
        r.op("aten::expand", 30, 40),
        r.op("aten::empty", 50, 50),  # of no length, at the launch
    ]
    breakdown = analyze([*ops, r.call("cudaLaunchKernel", 50, 60, 1), r.kernel("k", 70, 80, 1)])

    assert [row.op for row in breakdown.total.top] == ["aten::mm"]


def test_a_launch_on_a_thread_without_ops_goes_by_the_name_of_its_call(analyze, reference):
    r = reference
    breakdown = analyze(
        [
            r.op("aten::mm", 0, 100, thread=1),
            r.call("cuLaunchKernelEx", 50, 60, 1, thread=2),
            r.kernel("triton_poi_fused_add_0", 70, 80, 1),
        ]
    )

    assert [row.op for row in breakdown.total.top] == ["cuLaunchKernelEx"]
    assert breakdown.threads[0].thread == "4000:2"


def test_a_launch_at_the_end_of_an_op_is_outside_and_at_its_start_inside(read, reference):
    r = reference
    events = [r.op("aten::mm", 0, 50), r.op("aten::add", 50, 90)]
    events += [r.call("cudaLaunchKernel", t, t + 1, n) for n, t in enumerate((0, 50, 90))]
    events += [r.kernel("k", 100, 110, n) for n in range(3)]

    _, _, dispatches = link(read(events))

    assert dispatches.root.tolist() == [0, 1, -1]


def test_ops_that_cross_share_one_root_and_ops_that_touch_do_not():
    #                 0---------10     20----30, 30---40, 40 of no length
    start, end = np.array([0, 2, 5, 20, 30, 40, 40]), np.array([10, 3, 15, 30, 40, 40, 40])

    roots = find_roots(start, end)

    assert [column.tolist() for column in roots] == [[0, 20, 30, 40, 40], [15, 30, 40, 40, 40]]
    assert [len(column) for column in find_roots(start[:0], end[:0])] == [0, 0]


def test_containing_is_half_open():
    start, end = np.array([0, 10, 20]), np.array([5, 20, 30])

    assert containing(start, end, np.array([-1, 0, 4, 5, 10, 19, 20, 30])).tolist() == [-1, 0, 0, -1, 1, 1, 2, -1]
    assert containing(start[:0], end[:0], np.array([3])).tolist() == [-1]


def test_innermost_and_the_next_op_outwards():
    # 0: [0, 100)  1: [0, 50)  2: [10, 20)  3: [10, 20)  4: [30, 40)  5: [60, 60)
    start, end = np.array([0, 0, 10, 10, 30, 60]), np.array([100, 50, 20, 20, 40, 60])

    assert next_outer(end).tolist() == [-1, 0, 1, 1, 1, 0]
    at = np.array([0, 10, 19, 20, 35, 45, 55, 60, 100])
    assert innermost(start, end, at).tolist() == [1, 3, 3, 1, 4, 1, 0, 0, -1]
    assert innermost(start[:0], end[:0], at[:1]).tolist() == [-1]


def test_of_several_calls_with_one_id_the_nearest_in_time_launched_an_activity(read, reference):
    r = reference
    events = [
        r.call("cudaLaunchKernel", 0, 5, 1),
        r.kernel("first", 10, 20, 1),
        r.call("cudaLaunchKernel", 1000, 1005, 1),  # ids begin anew
        r.kernel("second", 995, 1020, 1),  # clocks: before its launch, and nearer to it than to the first
        r.kernel("late", 300, 310, 1),
    ]

    _, activities, dispatches = link(read(events))

    assert dispatches.launch_ns[activities.dispatch].tolist() == [0, 0, 1000]
