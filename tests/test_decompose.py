"""The whole decomposition against the slow reference, and what the first reader of a breakdown relies on."""

from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taxbreak_vllm.decompose import decompose
from taxbreak_vllm.errors import TraceFormatError
from taxbreak_vllm.model import Source
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.kineto import read_events

RULES = KernelRules.load()

# Where a trace lies on the clock: float µs hold ns, hold them barely, no longer, and the largest a float can count by 1.
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
def traces(draw):
    """Some 30 events in any order, on a handful of threads, streams and devices."""
    ops = draw(st.lists(events("op", OPS, 30, thread=THREADS), max_size=10))
    calls = draw(st.lists(events("call", CALLS, 8, thread=THREADS, correlation=CORRELATIONS), max_size=12))
    kernels = draw(st.lists(events("kernel", KERNELS, 30, **ON_DEVICE), max_size=10))
    copies = draw(st.lists(events("memcpy", COPIES, 8, **ON_DEVICE), max_size=3))
    fills = draw(st.lists(events("memset", ("Memset (Device)",), 3, **ON_DEVICE), max_size=2))
    steps = draw(st.lists(events("step", ("taxbreak.step:a", "taxbreak.step:b"), 30, thread=THREADS), max_size=3))
    # One activity at least: without any, a trace with ops is the CPU backend's.
    kernels = kernels or [draw(events("kernel", KERNELS, 30, **ON_DEVICE))]
    return draw(st.permutations([*ops, *calls, *kernels, *copies, *fills, *steps]))


def classify(name, op):
    kind = RULES.classify(name, op)
    return str(kind.family), kind.i_lib


def read_and_decompose(path, text, floor_ns=None):
    path.write_text(text)
    return decompose(read_events(path), source=Source(path=str(path)), rules=RULES, floor_ns=floor_ns)


@pytest.fixture
def analyze(reference, tmp_path):
    """Write made-up events to a file and decompose it."""
    return lambda events, **options: read_and_decompose(tmp_path / "t.json", reference.to_json(events), **options)


@pytest.fixture(scope="module")
def workplace(reference, tmp_path_factory):
    return SimpleNamespace(reference=reference, path=tmp_path_factory.mktemp("traces") / "t.json")


def assert_conserved(step):
    device, idle = step.device, step.device.idle
    assert sum(vars_of(step.host)) == step.window_ns
    assert device.active_ns + device.other_active_ns + device.idle_ns == device.window_ns
    assert sum(vars_of(idle)) == device.idle_ns
    assert sum(vars_of(step.exposed)) == idle.host_ns
    assert min(*vars_of(step.host), device.active_ns, device.other_active_ns, *vars_of(idle)) >= 0
    assert min(vars_of(step.exposed)) >= 0


def vars_of(value):
    return list(msgspec.to_builtins(value).values())


@settings(max_examples=200)
@given(events=traces(), base_ns=st.sampled_from(BASES_NS), floor_ns=st.sampled_from((None, 5)))
def test_every_figure_equals_the_slow_reference(workplace, events, base_ns, floor_ns):
    events = workplace.reference.shifted(events, base_ns)

    got = read_and_decompose(workplace.path, workplace.reference.to_json(events), floor_ns)

    want = workplace.reference.breakdown(events, classify, floor_ns)
    coverage = msgspec.to_builtins(got.coverage)
    assert {key: coverage[key] for key in want["coverage"]} == want["coverage"]
    assert list(msgspec.to_builtins(got.devices)) == want["devices"]
    assert {row.thread: (row.launches, row.host_tax_ns) for row in got.threads} == want["threads"]
    assert len(got.steps) == len(want["steps"])
    for step, expected in zip((*got.steps, got.total), (*want["steps"], want["total"]), strict=True):
        assert comparable(step, expected) == expected


def comparable(step, expected):
    tree = msgspec.to_builtins(step)
    tree["top"] = {
        (row.op, row.kernel): (row.count, row.active_ns, row.delta_ft_ns, row.delta_ct_ns, row.delta_kt_ns)
        for row in step.top
    }
    return {key: tree[key] for key in expected}
