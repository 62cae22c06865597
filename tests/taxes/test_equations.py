"""T_py, T_dispatch, T_base, ΔCT, ΔFT, ΔKT and T_sys on traces whose every number is worked out beside them."""

import numpy as np
import pytest

from taxbreak_vllm.taxes import equations

ADD = "void at::native::vectorized_elementwise_kernel<4, AddFunctor>"
GEMM = "ampere_sgemm_128x64_tn"


@pytest.fixture
def spans(measure):
    """(T_py, T_dispatch) of each dispatch, in the order of threads and launches."""

    def spans(events):
        measured = measure(events).spans
        return list(zip(measured.t_py.tolist(), measured.t_dispatch.tolist(), strict=True))

    return spans


@pytest.fixture
def launched(reference):
    """A launch and its kernel, long after."""

    def launched(start, end, number, *, kernel=ADD, thread=1, name="cudaLaunchKernel"):
        late = 10_000 + 100 * number
        return [
            reference.call(name, start, end, number, thread=thread),
            reference.kernel(kernel, late, late + 9, number),
        ]

    return launched


def test_launches_under_one_root_op_share_its_time_without_counting_any_twice(spans, reference, launched):
    events = [
        reference.op("aten::linear", 0, 100),
        *launched(20, 30, 1),  # 0 to 20
        *launched(50, 55, 2),  # 30 to 50
        *launched(90, 99, 3),  # 55 to 90
    ]

    assert spans(events) == [(0, 20), (0, 20), (0, 35)]


def test_other_calls_under_a_root_op_are_not_dispatch(spans, reference, launched):
    events = [
        reference.op("aten::linear", 0, 100),
        reference.call("cudaMalloc", 5, 15),  # 10 of the 20 before the first launch
        *launched(20, 30, 1),
        reference.call("cudaStreamSynchronize", 32, 40),  # 8 of the 20 before the second
        *launched(50, 55, 2),
    ]

    assert spans(events) == [(0, 10), (0, 12)]


def test_nested_ops_of_identical_spans_count_once(spans, reference, launched):
    op = reference.op
    events = [op("aten::linear", 0, 50), op("aten::matmul", 0, 50), op("aten::mm", 0, 50), *launched(20, 30, 1)]

    assert spans(events) == [(0, 20)]


@pytest.mark.parametrize(
    ("before", "t_py"),
    [
        # The launch's own root op begins at 100.
        ([("op", "aten::view", 0, 40)], 60),  # since that op ended
        ([("op", "aten::view", 0, 40), ("op", "aten::view", 40, 100)], 0),  # touching
        ([("op", "aten::view", 0, 10), ("call", "cudaStreamSynchronize", 20, 70)], 30),  # since the host was let go
        ([("op", "aten::view", 0, 10), ("call", "cudaMemcpy", 20, 60)], 40),
        ([("op", "aten::view", 0, 10), ("call", "cudaLaunchKernel", 20, 25)], 75),  # a launch that left no activity
        ([("op", "aten::view", 0, 10), ("call", "cudaMalloc", 20, 25)], 85),  # no boundary, but not Python either
        ([("op", "aten::view", 0, 10), ("step", "s", 30, 200)], 70),  # since the step began
        ([("step", "s", 30, 200)], 70),  # the step's own thread is known from there on
        ([], 0),  # nothing is known of what came before
    ],
)
def test_t_py_reaches_back_to_the_last_boundary(spans, reference, launched, before, t_py):
    earlier = [getattr(reference, kind)(name, start, end) for kind, name, start, end in before]

    assert spans([*earlier, reference.op("aten::mm", 100, 150), *launched(110, 120, 1)]) == [(t_py, 10)]


def test_t_py_reaches_back_to_an_earlier_launch_under_no_op(spans, reference, launched):
    # Triton's launcher: no op, T_dispatch 0, and the host time since the op before is its T_py.
    events = [reference.op("aten::view", 0, 10), *launched(30, 35, 1), *launched(50, 51, 2)]

    assert spans(events) == [(20, 0), (15, 0)]


def test_a_launch_of_no_length_is_no_boundary_for_itself(spans, reference, launched):
    # µs clocks write many launches as 0 long; the second begins where the first ended.
    events = [reference.op("aten::view", 0, 10), *launched(30, 30, 1), *launched(30, 30, 2), *launched(34, 34, 3)]

    assert spans(events) == [(20, 0), (0, 0), (4, 0)]


def test_copies_are_boundaries_and_have_spans_of_their_own(spans, reference, launched):
    r = reference
    copy = [r.call("cudaMemcpyAsync", 30, 40, 1), r.memcpy("Memcpy HtoD (Pinned -> Device)", 50, 60, 1)]

    assert spans([r.op("aten::view", 0, 10), *copy, *launched(70, 80, 2)]) == [(20, 0), (30, 0)]


def test_threads_do_not_share_time(spans, reference, launched):
    op = reference.op
    events = [
        op("aten::view", 0, 10, thread=1),
        *launched(50, 55, 1, thread=1),  # 40 since the op on its own thread
        op("aten::view", 30, 45, thread=2),
        *launched(60, 65, 2, thread=2),  # 15
        *launched(70, 75, 3, thread=3),  # a thread that shows nothing else
    ]

    assert spans(events) == [(40, 0), (15, 0), (0, 0)]


def test_only_the_steps_own_thread_is_known_from_its_start(spans, reference, launched):
    events = [
        reference.step("s", 0, 100, thread=1),
        *launched(50, 55, 1, thread=1),
        *launched(70, 75, 2, thread=2),
    ]

    assert spans(events) == [(50, 0), (0, 0)]


def test_t_base_is_the_median_of_framework_native_kernel_launches_and_delta_ct_what_is_above(
    analyze, reference, launched
):
    op = reference.op
    breakdown = analyze(
        [
            op("aten::add", 0, 100),
            *launched(20, 30, 1),  # T_dispatch 20
            op("aten::add", 100, 200),
            *launched(141, 150, 2),  # 41
            op("aten::mm", 200, 300),
            *launched(280, 290, 3, kernel=GEMM),  # 80: 50 above the base
            op("aten::mm", 300, 400),
            *launched(315, 320, 4, kernel=GEMM),  # 15: below, so none
            *launched(410, 411, 5),  # no op around: T_dispatch 0 by definition, no say in T_base; T_py 10
            *launched(412, 413, 6, kernel=GEMM, name="cudaGraphLaunch"),  # a graph goes through no library; T_py 1
        ],
        floor_ns=4,
    )

    # T_base = (20 + 41) / 2 = 30.5, cut to 30.
    total = breakdown.total.taxes
    assert "T_base 30 ns" in " ".join(breakdown.notes)
    assert total.delta_ct_ns == 50
    assert total.delta_ft_ns == 20 + 41 + (80 - 50) + 15 + 10 + 1
    assert total.delta_kt_ns == 6 * 4
    assert total.orchestration_ns == 50 + 117 + 24
    assert breakdown.total.hdbi == 54 / (54 + 191)  # six kernels of 9 ns
    assert breakdown.total.host.library_ns == 50


def test_copies_and_fills_have_no_delta_kt(analyze, reference, launched):
    r = reference
    breakdown = analyze([*launched(0, 5, 1), r.call("cudaMemsetAsync", 10, 15, 2), r.memset(20, 30, 2)], floor_ns=4)

    assert breakdown.total.taxes.delta_kt_ns == 4
    assert breakdown.total.launches == 2


def test_without_a_native_kernel_delta_ct_is_unknown_and_stays_in_delta_ft(analyze, reference, launched):
    breakdown = analyze([reference.op("aten::mm", 0, 100), *launched(80, 90, 1, kernel=GEMM)], floor_ns=4)

    assert breakdown.total.taxes.delta_ct_ns is None
    assert breakdown.total.taxes.delta_ft_ns == 80
    assert breakdown.total.taxes.orchestration_ns == 84


def test_t_sys_is_read_from_launches_that_found_their_stream_idle(measure, reference):
    r = reference
    measured = measure(
        [
            r.call("cudaLaunchKernel", 0, 2, 1),
            r.kernel("a", 7, 100, 1),  # idle: 7
            r.call("cudaLaunchKernel", 50, 52, 2),
            r.kernel("b", 101, 110, 2),  # behind a: no say
            r.call("cudaLaunchKernel", 60, 62, 3),
            r.kernel("c", 63, 70, 3, stream=8),  # 3, on another stream
            r.call("cudaLaunchKernel", 200, 202, 4),
            r.kernel("d", 199, 205, 4),  # before its launch: clocks, no say
        ]
    )

    # The 5th percentile of 3 and 7, of those there are: 3.
    assert equations.t_sys(measured.activities, measured.dispatches) == 3
    assert measured.taxes.delta_kt_ns.tolist() == [3, 3, 3, 3]


def test_a_stream_that_overlaps_its_own_work_is_busy_until_the_last_of_it_ends(measure, reference):
    r = reference
    events = [
        r.kernel("long", 0, 100),
        r.kernel("short", 10, 20),
        r.call("cudaLaunchKernel", 50, 52, 1),
        r.kernel("queued", 60, 70, 1),
    ]

    assert measure(events).taxes.delta_kt_ns is None


def test_the_equations_hold_on_columns():
    t_dispatch, i_lib = np.array([10, 40, 25, 90]), np.array([False, True, True, False])
    is_kernel = np.array([True, True, True, False])
    spans = equations.Spans(t_py=np.array([1, 2, 3, 4]), t_dispatch=t_dispatch, num_ops=np.zeros(4, dtype=np.int64))

    base = equations.t_base(t_dispatch, i_lib, is_kernel)
    ct = equations.delta_ct(t_dispatch, i_lib, 30)

    assert base == 10
    assert ct.tolist() == [0, 10, 0, 0]
    assert equations.delta_ft(spans, ct).tolist() == [11, 32, 28, 94]
    assert equations.delta_ft(spans, None).tolist() == [11, 42, 28, 94]
    assert equations.delta_kt(is_kernel, 5).tolist() == [5, 5, 5, 0]
    assert equations.t_base(t_dispatch, i_lib, np.zeros(4, dtype=bool)) is None
