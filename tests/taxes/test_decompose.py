"""The whole decomposition against the slow reference, and what the first reader of a breakdown relies on."""

import dataclasses
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import trials

from taxbreak_vllm.model.baseline import Baseline, Environment, Floor, FloorKind, Floors, Outcome, Spread
from taxbreak_vllm.model.breakdown import Tier
from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.calls import Call, Kernel, signature
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.large.spill import open_trace
from taxbreak_vllm.trace.read.kineto import read_events

RULES = KernelRules.load()

# Where a trace lies on the clock: float µs hold ns, hold them barely, no longer; 2^53 µs is where floats skip whole µs.
BASES_NS = (0, 1_000_000_007, 4_450_000_000_000_000_123, 1_709_226_384_123_456_789, 2**53 * 1000 + 1)
OPS = ("aten::mm", "aten::add", "vllm::unified_attention", "_C::rms_norm")
CALLS = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
    "cudaMemcpyAsync",
    "cudaMemcpy",
    "cudaMemsetAsync",
    "cudaMalloc",
    "cudaStreamSynchronize",
    "cudaEventRecord",
    "cudaLaunchHostFunc",
)
KERNELS = ("ampere_sgemm_128x64_tn", "void at::native::vectorized_elementwise_kernel<4, AddFunctor>", "_fwd_kernel")
COPIES = ("Memcpy DtoH (Device -> Pageable)", "Memcpy HtoD (Pinned -> Device)")


def spans(longest):
    """(start, end) in ns on a grid so coarse that instants coincide, some spans are empty and some identical."""
    return st.tuples(st.integers(0, 60), st.sampled_from((0, 0, 1, 2, 3, 5, 8, 13, longest))).map(
        lambda pair: {"start": pair[0] * 7, "end": (pair[0] + pair[1]) * 7}
    )


def events(kind, names, longest, **fields):
    """Lists of events as `tests/reference.py` has them."""
    blank = {"thread": None, "correlation": None, "device": None, "stream": None}
    return st.builds(
        lambda name, span, values: {"kind": kind, "name": name} | blank | span | values,
        st.sampled_from(names),
        spans(longest),
        st.fixed_dictionaries(fields),
    )


THREADS = st.sampled_from((1, 1, 1, 2, 3))
CORRELATIONS = st.one_of(st.none(), st.integers(0, 12))
ON_DEVICE = {
    "correlation": CORRELATIONS,
    "device": st.sampled_from((0, 0, 0, 1)),
    "stream": st.sampled_from((7, 7, 20)),
}


@st.composite
def dispatches(draw, correlation):
    """An op around a launch and what came of it, most often in this order."""
    begin, before, length, rest, delay = (draw(st.integers(*bounds)) for bounds in ((0, 60), (0, 6), *[(0, 4)] * 3))
    launch, thread = begin + before, draw(st.sampled_from((1, 1, 1, 2)))
    blank = {"thread": None, "correlation": correlation, "device": None, "stream": None}
    kernels = draw(st.lists(st.tuples(st.sampled_from(KERNELS), st.integers(0, 6)), min_size=1, max_size=3))
    name = "cudaGraphLaunch" if len(kernels) > 1 else draw(st.sampled_from(CALLS[:3]))
    made = [
        blank | {"kind": "op", "name": draw(st.sampled_from(OPS)), "start": begin, "end": launch + length + rest},
        blank | {"kind": "call", "name": name, "start": launch, "end": launch + length},
    ]
    made = [event | {"thread": thread} for event in made]
    at = launch + delay
    for kernel_name, duration in kernels:
        made.append(blank | {"kind": "kernel", "name": kernel_name, "start": at, "end": at + duration})
        made[-1] |= {"device": 0, "stream": 7}
        at += duration + draw(st.integers(0, 2))
    return [event | {"start": event["start"] * 7, "end": event["end"] * 7} for event in made]


@st.composite
def traces(draw):
    """Some 40 events in any order, on a handful of threads, streams and devices: half of them whole dispatches."""
    made = [event for i in range(draw(st.integers(1, 6))) for event in draw(dispatches(20 + i))]
    made += draw(st.lists(events("op", OPS, 30, thread=THREADS), max_size=6))
    made += draw(st.lists(events("call", CALLS, 8, thread=THREADS, correlation=CORRELATIONS), max_size=8))
    made += draw(st.lists(events("kernel", KERNELS, 30, **ON_DEVICE), max_size=5))
    made += draw(st.lists(events("memcpy", COPIES, 8, **ON_DEVICE), max_size=3))
    made += draw(st.lists(events("memset", ("Memset (Device)",), 3, **ON_DEVICE), max_size=2))
    made += draw(st.lists(events("step", ("taxbreak.step:a", "taxbreak.step:b"), 30, thread=THREADS), max_size=3))
    return draw(st.permutations(made))


@st.composite
def joined(draw, parts):
    """Several traces one after the other or over each other, their correlation ids going on or beginning anew."""
    made, at = [], 0
    begins_anew = draw(st.booleans())
    for number, events in enumerate(draw(st.lists(parts, min_size=2, max_size=3))):
        for event in events:
            moved = event | {"start": event["start"] + at, "end": event["end"] + at}
            if event["correlation"] is not None and not begins_anew:
                moved["correlation"] += 100 * number
            made.append(moved)
        at += draw(st.sampled_from((0, 70, 420, 700, 1400)))
    return made


def classify(name, op):
    kind = RULES.classify(name, op)
    return str(kind.family), kind.i_lib


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One file for all examples of a test."""
    return tmp_path_factory.mktemp("traces") / "trace.json"


def assert_conserved(step):
    device, idle = step.device, step.device.idle
    assert sum(vars_of(step.host)) == step.window_ns
    assert min(*vars_of(step.host), device.active_ns, device.other_active_ns) >= 0
    if device.idle_ns is not None:
        assert device.active_ns + device.other_active_ns + device.idle_ns == device.window_ns
    if idle.host_ns is None:
        assert {*vars_of(idle), *vars_of(step.exposed), step.hdbi} == {None}
        assert step.notes
        return
    assert sum(vars_of(idle)) == device.idle_ns
    assert sum(vars_of(step.exposed)) == idle.host_ns
    assert min(vars_of(idle)) >= 0
    assert min(vars_of(step.exposed)) >= 0


def vars_of(value):
    return list(msgspec.to_builtins(value).values())


@trials(250)
@given(events=traces(), base_ns=st.sampled_from(BASES_NS), floor_ns=st.sampled_from((None, 5)))
def test_every_figure_equals_the_slow_reference_and_is_conserved(reference, path, events, base_ns, floor_ns):
    events = reference.shifted(events, base_ns)
    path.write_text(reference.to_json(events))

    got = Recording(read_events(path), Terms(rules=RULES, floor_ns=floor_ns)).breakdown

    want = reference.breakdown(events, classify, floor_ns)
    coverage = msgspec.to_builtins(got.coverage)
    assert {key: coverage[key] for key in want["coverage"]} == want["coverage"]
    assert list(msgspec.to_builtins(got.devices)) == want["devices"]
    assert {row.thread: (row.launches, row.host_tax_ns) for row in got.threads} == want["threads"]
    assert len(got.steps) == len(want["steps"])
    for step, expected in zip((*got.steps, got.total), (*want["steps"], want["total"]), strict=True):
        assert comparable(step, expected) == expected
        assert_conserved(step)


def comparable(step, expected):
    tree = msgspec.to_builtins(step)
    tree["top"] = {
        (row.op, row.kernel): (row.count, row.active_ns, row.delta_ft_ns, row.delta_ct_ns, row.delta_kt_ns)
        for row in step.top
    }
    return {key: tree[key] for key in expected}


@trials(60)
@given(
    events=st.lists(events("op", (*OPS, "aten::view", "aten::empty"), 30, thread=THREADS), min_size=1, max_size=15),
    steps=st.lists(events("step", ("taxbreak.step:a",), 30, thread=THREADS), max_size=2),
)
def test_the_cpu_backend_is_conserved_too(reference, path, events, steps):
    path.write_text(reference.to_json([*events, *steps]))

    got = Recording(read_events(path), Terms(rules=RULES)).breakdown

    assert got.source.device_type == "cpu"
    for step in (*got.steps, got.total):
        assert_conserved(step)
        assert step.taxes.delta_kt_ns == 0
        assert step.tklqt_ns is step.tklqt_per_kernel_ns is step.launches is None


@pytest.mark.timeout(600)
@trials(40)
@given(
    events=joined(traces()),
    base_ns=st.sampled_from(BASES_NS),
    floor_ns=st.sampled_from((None, 5)),
    rows_per_part=st.sampled_from((1, 10, 30)),
)
def test_a_trace_measured_in_parts_gives_the_same_breakdown(reference, path, events, base_ns, floor_ns, rows_per_part):
    path.write_text(reference.to_json(reference.shifted(events, base_ns)))
    terms = Terms(rules=RULES, floor_ns=floor_ns)

    with open_trace(path, spill_above_bytes=0, rows_per_part=rows_per_part) as trace:
        in_parts = Recording(trace, terms).breakdown

    assert in_parts.to_json() == Recording(read_events(path), terms).breakdown.to_json()


@trials(40)
@given(
    events=joined(st.lists(events("op", (*OPS, "aten::view", "aten::empty"), 30, thread=THREADS), max_size=8)),
    steps=st.lists(events("step", ("taxbreak.step:a",), 200, thread=THREADS), max_size=4),
)
def test_so_does_a_trace_of_the_cpu_backend(reference, path, events, steps):
    path.write_text(reference.to_json([reference.op("aten::mm", 0, 30), *events, *steps]))
    terms = Terms(rules=RULES, op_cost_ns=2)

    with open_trace(path, spill_above_bytes=0, rows_per_part=1) as trace:
        in_parts = Recording(trace, terms).breakdown

    assert in_parts.to_json() == Recording(read_events(path), terms).breakdown.to_json()


def test_a_trace_without_step_annotations_is_one_step_equal_to_the_total(analyze, reference):
    breakdown = analyze([reference.call("cudaLaunchKernel", 0, 10, 1), reference.kernel("k", 20, 50, 1)])

    assert [step.name for step in breakdown.steps] == ["trace"]
    assert dataclasses.replace(breakdown.steps[0], name=None, number=None) == breakdown.total


def test_a_lost_graph_makes_hdbi_null_in_its_step_and_the_total_and_nowhere_else(analyze, reference):
    r = reference
    breakdown = analyze(
        [
            r.step("whole", 0, 100),
            r.call("cudaGraphLaunch", 10, 20, 1),
            r.kernel("k", 30, 90, 1),
            r.step("lost", 100, 200),
            r.call("cudaGraphLaunch", 110, 120, 2),
            r.call("cudaLaunchKernel", 130, 140, 3),
            r.kernel("k", 150, 190, 3),
        ],
        floor_ns=5,
    )

    whole, lost = breakdown.steps
    # T_py 10 (0 to 10) + T_sys 5 over 60 active: 60 / 75.
    assert whole.hdbi == 60 / 75
    assert whole.notes == ()
    assert lost.hdbi is None
    assert breakdown.total.hdbi is None
    assert "left no recorded node" in lost.notes[0]
    assert "left no recorded node" in " ".join(breakdown.notes)
    assert breakdown.coverage.graph_launches == 2
    assert breakdown.coverage.launches_without_activity == 1


def test_one_graph_launch_counts_once_for_launches_and_n_times_for_kernels(analyze, reference):
    r = reference
    breakdown = analyze(
        [r.call("cudaGraphLaunch", 100, 150, 1), *(r.kernel(f"k{i}", 200 + 10 * i, 206 + 10 * i, 1) for i in range(4))],
        floor_ns=7,
    )

    total = breakdown.total
    assert (total.launches, total.kernels, total.unique_kernels) == (1, 4, 4)
    assert total.tklqt_ns == 100  # 200 - 100
    assert total.tklqt_per_kernel_ns == 100 + 110 + 120 + 130
    assert total.taxes.delta_kt_ns == 7  # one floor, not four
    assert (total.akd_ns, total.device.kernel_sum_ns, total.device.active_ns) == (6, 24, 24)
    assert total.device.idle.queue_ns == 3 * 4  # the gaps between nodes: launched long ago


def test_kernels_without_a_launch_event_are_counted_and_their_time_is_shown(analyze, reference):
    r = reference
    breakdown = analyze(
        [
            r.call("cudaLaunchKernel", 0, 5, 1),
            r.kernel("linked", 10, 20, 1),
            r.kernel("orphan", 25, 40, 99),
            r.kernel("no correlation", 40, 50),
        ]
    )

    coverage, total = breakdown.coverage, breakdown.total
    assert (coverage.kernels, coverage.linked, coverage.unlinked) == (3, 1, 2)
    assert total.device.active_ns == 10 + 25
    assert total.device.idle.queue_ns == 5  # who launched it, and when, is unknown
    assert {row.op for row in total.top if row.kernel != "linked"} == {"(no launch event)"}
    assert total.tklqt_per_kernel_ns == 10


def test_a_kernel_before_its_own_launch_takes_nothing_off_the_others_and_is_told(analyze, reference):
    r = reference
    breakdown = analyze(
        [
            *(r.call("cudaLaunchKernel", 100, 120, 1), r.kernel("k", 95, 130, 1)),
            *(r.call("cudaLaunchKernel", 200, 220, 2), r.kernel("k", 207, 230, 2)),
        ]
    )

    assert (breakdown.total.tklqt_ns, breakdown.total.tklqt_per_kernel_ns) == (7, 7)
    assert breakdown.evidence.misplaced == 1
    assert "1 activities begin before their own launch" in breakdown.notes[-1]


def test_overlapping_streams_count_their_time_once(analyze, reference):
    r = reference
    breakdown = analyze(
        [
            r.call("cudaLaunchKernel", 0, 5, 1),
            r.call("cudaLaunchKernel", 5, 9, 2),
            r.kernel("a", 10, 50, 1, stream=7),
            r.kernel("b", 30, 70, 2, stream=8),
        ]
    )

    assert breakdown.total.device.kernel_sum_ns == 80
    assert breakdown.total.device.active_ns == 60  # 10 to 70


def test_figures_are_of_the_device_with_most_activities_and_the_others_are_listed(analyze, reference):
    r = reference
    breakdown = analyze(
        [
            r.kernel("a", 0, 100, device=3),
            r.kernel("b", 0, 10, device=5),
            r.kernel("c", 20, 30, device=5),
        ]
    )

    assert breakdown.total.device.active_ns == 20
    assert [(d.device, d.activities, d.active_ns) for d in breakdown.devices] == [(3, 1, 100), (5, 2, 20)]


def test_the_tax_of_a_launch_on_a_device_not_shown_is_in_top_too(analyze, reference):
    r = reference
    breakdown = analyze(
        [
            r.op("aten::mm", 0, 100),
            *(r.call("cudaLaunchKernel", 10 + 20 * i, 15 + 20 * i, i) for i in range(3)),
            r.kernel("a", 200, 210, 0, device=0),
            r.kernel("a", 210, 220, 1, device=0),
            r.kernel("b", 200, 300, 2, device=1),
        ],
        floor_ns=5,
    )

    total = breakdown.total
    # Launch 0 has 0 to 10, launches 1 and 2 the 15 ns since the one before returned.
    assert {(row.kernel, row.count, row.active_ns, row.delta_ft_ns) for row in total.top} == {
        ("a", 2, 20, 25),
        ("b", 0, 0, 15),
    }
    assert sum(row.delta_ft_ns for row in total.top) == total.taxes.delta_ft_ns
    assert sum(row.delta_kt_ns for row in total.top) == total.taxes.delta_kt_ns == 15


def test_activities_belong_to_the_step_that_launched_them_however_late_they_run(analyze, reference):
    r = reference
    breakdown = analyze(
        [
            r.step("first", 0, 100),
            r.call("cudaLaunchKernel", 10, 20, 1),
            r.step("second", 100, 200),
            r.call("cudaLaunchKernel", 110, 120, 2),
            r.kernel("late", 90, 150, 1),
            r.kernel("next", 150, 260, 2),
        ]
    )

    first, second = (step.device for step in breakdown.steps)
    assert (first.window_ns, first.active_ns, first.other_active_ns, first.idle_ns) == (150, 60, 0, 90)
    # From 100 to 260: 50 ns of the first step's kernel, 110 of its own.
    assert (second.window_ns, second.active_ns, second.other_active_ns, second.idle_ns) == (160, 110, 50, 0)
    assert breakdown.total.device.window_ns == 260


def test_copying_kernels_are_kernels_but_copies_are_not(analyze, reference):
    r = reference
    copy_kernel = "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIt"
    breakdown = analyze(
        [
            r.kernel(copy_kernel, 0, 10),
            r.kernel("ampere_sgemm_128x64_tn", 10, 20),
            r.memcpy("Memcpy DtoD (Device -> Device)", 20, 30),
        ]
    )

    assert breakdown.total.kernels == 2
    assert breakdown.total.unique_kernels == 2
    assert breakdown.total.families["copy"].kernels == 1
    assert breakdown.total.families["copy"].active_ns == 20


def test_sums_beyond_the_exact_part_of_a_float_stay_exact(analyze, reference):
    r = reference
    late = 2**53 + 1  # ns between a launch and its kernel
    events = [e for i in range(3) for e in (r.call("cudaLaunchKernel", i, i, i), r.kernel("k", i + late, i + late, i))]

    assert analyze(events).total.tklqt_ns == 3 * late


@pytest.mark.parametrize(
    ("launch", "around", "device_type"),
    [
        ("cudaLaunchKernel", {}, "cuda"),
        ("hipLaunchKernel", {}, "rocm"),
        (None, {"roctracer_version": 4}, "rocm"),
        (None, {"hip_driver_version": 60}, "rocm"),
        (None, {"cuda_driver_version": 12090}, "cuda"),
    ],
)
def test_the_kind_of_device_is_read_from_the_trace(analyze, reference, launch, around, device_type):
    events = [reference.kernel("k", 10, 20, 1)]
    events += [reference.call(launch, 0, 5, 1)] if launch else []

    assert analyze(events, **around).source.device_type == device_type


def _info(**server):
    return StepInfo(
        step_id="a",
        step_index=1,
        server=Server(server_id="server-a", **server),
        phase=Phase.DECODE,
        batch=Batch(requests=1),
        graph_mode=GraphMode.NONE,
        started_unix_ns=0,
        window_ns=30,
    )


@pytest.mark.parametrize("told", ["cuda", "xpu", "npu"])
def test_a_recording_without_its_device_half_is_still_of_the_device_its_worker_names(read, reference, told):
    """Ops alone look like the CPU backend's; the worker knows better."""
    found = Recording(read([reference.op("aten::mm", 0, 30)]), info=_info(device_type=told)).breakdown

    assert found.source.device_type == told
    assert (found.total.hdbi, found.total.taxes.orchestration_ns, found.total.tklqt_ns) == (None, None, None)
    assert found.total.host.dispatch_ns == 30
    assert any("the device's half is missing" in note for note in found.notes)


def test_ops_alone_are_the_cpu_backends_only_where_nothing_tells_of_another_device(analyze, reference):
    events = [reference.op("aten::mm", 0, 30)]

    assert analyze(events).source.device_type == "cpu"
    assert analyze(events, deviceProperties=[{"id": 0, "name": "NVIDIA H100"}]).source.device_type == "cuda"
    assert analyze([*events, reference.call("urEnqueueKernelLaunch", 5, 9)]).source.device_type == "xpu"


def test_ops_beside_launches_without_any_activity_are_a_gpu_trace_that_lost_its_device_half(analyze, reference):
    r = reference
    breakdown = analyze([r.op("aten::mm", 0, 100), r.call("cudaLaunchKernel", 50, 60, 1)])

    assert breakdown.source.device_type == "cuda"
    assert breakdown.coverage.launches_without_activity == 1
    assert breakdown.total.hdbi is None


def test_a_trace_with_neither_ops_nor_activities_is_refused_in_one_line(analyze, reference):
    with pytest.raises(TraceFormatError, match=r"^[^\n]*trace\.json[^\n]*neither[^\n]*$"):
        analyze([reference.step("empty", 0, 10)])


class MadeUpView:
    """Baselines of ops by name, as a trace without shapes has them; None stands for an op that is denied."""

    environment = Environment(device_type="cuda", device_name="a GPU", torch="2.13")

    def __init__(self, floors=None, **entries):
        self.floors = floors
        self._entries = entries

    def get(self, signatures):
        kernels = [Kernel(), *(Kernel(name) for name in (*KERNELS, GEMM, ADD))]
        found = {}
        for op, entry in self._entries.items():
            for kernel in kernels:
                key = signature(Call(op.replace("__", "::", 1), None), kernel)
                found[key] = Baseline(
                    signature=key,
                    op=op,
                    outcome=Outcome.DENIED if entry is None else Outcome.MEASURED,
                    **{name: Spread(ns, 0, 1) for name, ns in (entry or {}).items()},
                )
        return {key: found[key] for key in signatures if key in found}


class OneView:
    """A store that has the same baselines for every place."""

    path = Path("made-up.sqlite3")

    def __init__(self, view):
        self._view = view

    def view(self, told):
        return self._view


ADD, GEMM = KERNELS[1], KERNELS[0]
FLOORS = Floors(
    floors=(
        Floor(kind=FloorKind.KERNEL, spread=Spread(5, 0, 1), nodes=1),
        Floor(kind=FloorKind.GRAPH, spread=Spread(24, 0, 1), nodes=8),
        Floor(kind=FloorKind.GRAPH, spread=Spread(10, 0, 1), nodes=1),
    )
)


@pytest.fixture(scope="module")
def replay(reference, path):
    """Decompose made-up events with made-up baselines."""

    def replay(events, view, **told):
        path.write_text(reference.to_json(events))
        events = read_events(path, with_calls=True)
        return Recording(events, Terms(rules=RULES, baselines=OneView(view), **told)).breakdown

    return replay


@pytest.fixture
def on_gpu(reference):
    """Five dispatches at 0, 1000, 2000…: of 30, 60, 50 and 30 ns, and a graph of four nodes; 100 ns active each."""
    r = reference

    def dispatch(at, op, t_dispatch, kernel, number):
        return [
            r.op(op, at, at + 90),
            r.call("cudaLaunchKernel", at + t_dispatch, at + t_dispatch + 5, number),
            r.kernel(kernel, at + 200, at + 300, number),
        ]

    return [
        *dispatch(0, "aten::add", 30, ADD, 1),
        *dispatch(1000, "aten::mm", 60, GEMM, 2),
        *dispatch(2000, "aten::linear", 50, GEMM, 3),
        *dispatch(3000, "aten::mul", 30, ADD, 4),
        r.call("cudaGraphLaunch", 4000, 4010, 5),
        *(r.kernel(ADD, 4100 + 25 * n, 4125 + 25 * n, 5) for n in range(4)),
    ]


def top(breakdown):
    return {row.op: row for row in breakdown.total.top}


def test_t_base_and_delta_ct_rest_on_what_was_replayed_alone(replay, on_gpu):
    view = MadeUpView(FLOORS, aten__add={"dispatch": 10}, aten__mm={"dispatch": 45}, aten__mul={"dispatch": 14})

    rows = top(replay(on_gpu, view))

    # T_base is the median of 10 and 14. Of mm 45 - 12 is the library's, of the 60 in the trace the rest is not.
    assert rows["aten::mm"].delta_ct_ns == 33
    assert rows["aten::mm"].delta_ft_ns == 60 + (1000 - 90) - 33  # and the Python since the op before
    assert rows["aten::add"].delta_ct_ns == 0
    assert rows["aten::add"].tier is rows["aten::mm"].tier is Tier.REPLAYED


def test_what_was_not_replayed_takes_the_median_of_its_family(replay, on_gpu):
    view = MadeUpView(FLOORS, aten__add={"dispatch": 10}, aten__mm={"dispatch": 45})

    rows = top(replay(on_gpu, view))

    assert rows["aten::linear"].delta_ct_ns == 35  # as mm: 45 - 10
    assert rows["aten::linear"].tier is Tier.FAMILY
    assert rows["aten::mul"].tier is Tier.FAMILY


def test_without_a_replay_of_its_family_the_traces_own_dispatch_stands(replay, on_gpu):
    rows = top(replay(on_gpu, MadeUpView(FLOORS, aten__add={"dispatch": 10})))

    assert (rows["aten::mm"].delta_ct_ns, rows["aten::linear"].delta_ct_ns) == (50, 40)  # 60 and 50, less T_base 10
    assert rows["aten::mm"].tier is Tier.TRACE


def test_delta_ct_is_never_more_than_the_dispatch_it_is_part_of(replay, on_gpu):
    view = MadeUpView(FLOORS, aten__add={"dispatch": 10}, aten__mm={"dispatch": 5000})

    breakdown = replay(on_gpu, view)

    assert top(breakdown)["aten::mm"].delta_ct_ns == 60
    assert_conserved(breakdown.total)


def test_delta_kt_is_the_measured_floor_and_a_graphs_is_interpolated(replay, on_gpu):
    breakdown = replay(on_gpu, MadeUpView(FLOORS))

    # Four launches at 5; a graph of 4 nodes lies 3 / 7 of the way from 10 to 24.
    assert breakdown.total.taxes.delta_kt_ns == 4 * 5 + 16
    assert top(breakdown)["cudaGraphLaunch"].tier is Tier.FLOOR
    assert replay(on_gpu, MadeUpView(FLOORS), floor_ns=7).total.taxes.delta_kt_ns == 4 * 7 + 16
    assert replay(on_gpu, MadeUpView()).total.taxes.delta_kt_ns == 5 * 140  # read from the trace's quickest: mm's


@pytest.mark.parametrize("view", [None, MadeUpView(FLOORS, aten__mm={"dispatch": 45})], ids=["no view", "a view"])
def test_what_has_no_op_to_replay_stands_on_the_floor_and_so_do_the_kernels_in_it(replay, reference, view):
    r = reference
    events = [
        r.op("aten::mm", 0, 90),
        r.call("cudaLaunchKernel", 60, 65, 1),
        r.kernel(GEMM, 200, 300, 1),
        r.call("cudaGraphLaunch", 1000, 1010, 2),
        *(r.kernel(name, 1100 + 25 * n, 1125 + 25 * n, 2) for n, name in enumerate((ADD, GEMM))),
        r.call("cudaLaunchKernel", 2000, 2005, 3),
        r.kernel(ADD, 2100, 2200, 3),
        r.kernel(ADD, 3000, 3100),
    ]

    rows = {(row.op, row.kernel): row.tier for row in replay(events, view).total.top}

    assert rows.pop(("aten::mm", GEMM)) is (Tier.TRACE if view is None else Tier.REPLAYED)
    assert rows == dict.fromkeys(
        [("cudaGraphLaunch", ADD), ("cudaGraphLaunch", GEMM), ("cudaLaunchKernel", ADD), ("(no launch event)", ADD)],
        Tier.FLOOR,
    )


def test_delta_kt_excess_is_what_a_launch_took_alone_beyond_the_floor(replay, on_gpu):
    view = MadeUpView(
        FLOORS, aten__add={"dispatch": 10, "launch": 9}, aten__mm={"dispatch": 45, "launch": 4}, aten__linear=None
    )

    taxes = replay(on_gpu, view).total.taxes

    # add 4, mm none, linear as its family mm none, mul as its family add 4.
    assert taxes.delta_kt_excess_ns == 8
    assert replay(on_gpu, MadeUpView(FLOORS, aten__add={"dispatch": 10})).total.taxes.delta_kt_excess_ns is None


def test_what_is_denied_takes_the_next_tier_and_its_share_is_told(replay, on_gpu):
    view = MadeUpView(FLOORS, aten__add={"dispatch": 10}, aten__mm={"dispatch": 45}, aten__linear=None)

    breakdown = replay(on_gpu, view)

    own = top(breakdown)["aten::linear"]
    assert own.tier is Tier.FAMILY
    assert breakdown.coverage.denied_ns == own.delta_ft_ns + own.delta_ct_ns + own.delta_kt_ns
    assert sum(breakdown.coverage.replay.values()) == pytest.approx(1)
    assert set(breakdown.coverage.replay) == {Tier.REPLAYED, Tier.FAMILY, Tier.FLOOR}


def test_on_the_cpu_the_front_end_is_carved_out_of_compute(replay, reference):
    op = reference.op
    view = MadeUpView(aten__mm={"dispatch": 8, "library": 30}, aten__add={"dispatch": 4, "library": 30})

    total = replay([op("aten::mm", 0, 100), op("aten::add", 120, 150)], view).total

    # 8 of dispatch, 30 of front-end, the rest computes; ATen's add is no library, whatever a replay says of it.
    assert (total.host.dispatch_ns, total.host.library_ns, total.host.blocked_ns) == (8 + 4, 30, 62 + 26)
    assert (total.taxes.delta_ft_ns, total.taxes.delta_ct_ns, total.device.active_ns) == (12 + 20, 30, 88)
    assert total.hdbi == 88 / (88 + 62)
    assert_conserved(total)


def test_on_the_cpu_a_front_end_longer_than_the_op_leaves_no_compute_and_no_more(replay, reference):
    view = MadeUpView(aten__mm={"dispatch": 8, "library": 3000})

    total = replay([reference.op("aten::mm", 0, 100), reference.op("aten::add", 120, 150)], view).total

    assert total.host.library_ns == 92
    assert_conserved(total)


COSTS = st.one_of(
    st.none(),
    st.fixed_dictionaries({"dispatch": st.integers(0, 120)}, optional={"library": st.integers(0, 120)}),
)
STORES = st.fixed_dictionaries({}, optional={op.replace("::", "__"): COSTS for op in OPS})


@trials(80)
@given(
    events=st.lists(events("op", (*OPS, "aten::view"), 30, thread=THREADS), min_size=1, max_size=15),
    steps=st.lists(events("step", ("taxbreak.step:a",), 30, thread=THREADS), max_size=2),
    costs=STORES,
)
def test_the_cpu_backend_is_conserved_whatever_replay_says(replay, events, steps, costs):
    breakdown = replay([*events, *steps], MadeUpView(**costs))

    for step in (*breakdown.steps, breakdown.total):
        assert_conserved(step)
    assert_shares(breakdown)


@trials(80)
@given(events=traces(), costs=STORES)
def test_a_gpu_is_conserved_whatever_replay_says(replay, events, costs):
    entries = {
        op: cost and {"dispatch": cost["dispatch"], "launch": cost.get("library", 0)} for op, cost in costs.items()
    }

    breakdown = replay(events, MadeUpView(FLOORS, **entries))

    for step in (*breakdown.steps, breakdown.total):
        assert_conserved(step)
        assert (step.taxes.delta_kt_excess_ns or 0) >= 0
    assert_shares(breakdown)


def assert_shares(breakdown):
    shares, taxes = breakdown.coverage.replay, breakdown.total.taxes
    assert sum(shares.values()) == pytest.approx(1) or not shares
    if "taxes" in breakdown.evidence.withheld:
        return
    # ops that cross or coincide, which no thread does, each reach back to the same boundary; in the total that is once
    by_dispatch = sum(
        (row.delta_ft_ns or 0) + (row.delta_ct_ns or 0) + (row.delta_kt_ns or 0) for row in breakdown.total.top
    )
    assert 0 <= breakdown.coverage.denied_ns <= max(by_dispatch, taxes.orchestration_ns or 0)
    assert shares or not taxes.orchestration_ns or breakdown.source.device_type == "cpu"
