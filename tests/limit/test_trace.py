"""What a trace's shapes tell of its device's time: each op's work once, each instant of the device in one place."""

import json

import pytest

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.limit.trace import limit_of
from taxbreak_vllm.model.baseline import Environment
from taxbreak_vllm.model.ceilings import CeilingSource, DeviceProperties, MeasuredCeilings, Rate
from taxbreak_vllm.model.limit import Bound, Limit, StepTokens
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.read.kineto import read_events

H100 = "NVIDIA H100 80GB HBM3"
CATEGORIES = {"op": "cpu_op", "call": "cuda_runtime", "step": "user_annotation"}


def event(category, name, start, end, thread=1, **args):
    """An event from `start` to `end`, µs."""
    category = CATEGORIES.get(category, category)
    return {
        "ph": "X", "cat": category, "name": name, "pid": 1, "tid": thread, "ts": start, "dur": end - start, "args": args
    }  # fmt: skip


def op(name, start, end, *shapes, type="c10::BFloat16", values=None):
    args = {"Input Dims": [list(shape) for shape in shapes], "Input type": [type] * len(shapes)}
    if values:
        args = {
            "Input Dims": args["Input Dims"] + [[]] * len(values),
            "Input type": args["Input type"] + ["Scalar"] * len(values),
            "Concrete Inputs": [""] * len(shapes) + list(values),
        }
    return event("op", name, start, end, **args)


def launched(kernel, at, start, end, number, *, call="cudaLaunchKernel", kind="kernel", device=0):
    """A launch at `at` and what it ran on the device."""
    return [
        event("call", call, at, at + 1, correlation=number),
        event(kind, kernel, start, end, thread=7, correlation=number, device=device, stream=7),
    ]


@pytest.fixture
def limit(tmp_path):
    """Write events to a file and tell its limit."""

    def limit(events, *, device=H100, with_calls=True, store=None, **how):
        trace = {"traceEvents": events}
        if device is not None:
            trace["deviceProperties"] = [{"id": 0, "name": device}]
        (tmp_path / "trace.json").write_text(json.dumps(trace))
        events = read_events(tmp_path / "trace.json", with_calls=with_calls)
        return limit_of(Recording(events, Terms(baselines=store)), **how)

    return limit


def big_product(at, device_from, number, size=4096):
    """A product of 2·4096³ FLOPs, 138.9 µs of an H100, and 3·4096² elements, 30.0 µs of its memory, run in 200 µs."""
    shapes = (size, size), (size, size)
    kernel = launched("nvjet_gemm", at + 2, device_from, device_from + 200, number)
    return [op("aten::mm", at, at + 10, *shapes), *kernel]


def test_an_op_is_counted_once_however_many_kernels_it_launched(limit):
    found = limit([
        op("aten::mm", 0, 20, (4096, 4096), (4096, 4096)),
        *launched("splitk_gemm", 2, 30, 130, 1),
        *launched("splitk_reduce", 6, 130, 180, 2),
    ])  # fmt: skip

    assert (found.flops, found.bytes) == (2 * 4096**3, 2 * 3 * 4096**2)
    assert (found.device_ns, found.covered_ns, found.coverage) == (150_000, 150_000, 1.0)
    assert [(row.op, row.count, row.device_ns) for row in found.ops] == [("aten::mm", 1, 150_000)]


def test_the_least_time_follows_of_ceilings_and_what_lies_above_it_too(limit):
    found = limit(big_product(0, 30, 1))

    compute_ns = round(2 * 4096**3 / 989.4e12 * 1e9)
    assert found.compute_ns == compute_ns
    assert found.memory_ns == round(6 * 4096**2 / 3350e9 * 1e9)
    assert found.floor_ns == (compute_ns, compute_ns)
    assert found.above_ns == 200_000 - compute_ns
    assert found.bound_ns == {Bound.COMPUTE: 200_000, Bound.MEMORY: 0, Bound.LATENCY: 0}
    assert found.mfu == pytest.approx(compute_ns / 230_000)
    assert found.flops_per_s == pytest.approx(2 * 4096**3 / 200e-6)


def test_ops_are_bound_by_products_bytes_or_the_shortest_kernel(limit):
    found = limit([
        *big_product(0, 30, 1),
        op("aten::copy_", 20, 30, (8192, 8192), (8192, 8192)), *launched("copy", 22, 230, 330, 2),
        op("aten::add", 40, 50, (8,), (8,)), *launched("add", 42, 330, 332, 3),
    ])  # fmt: skip

    assert found.shortest_kernel_ns == 2_000
    assert {row.op: row.bound for row in found.ops} == {
        "aten::mm": Bound.COMPUTE, "aten::copy_": Bound.MEMORY, "aten::add": Bound.LATENCY
    }  # fmt: skip
    assert found.bound_ns == {Bound.COMPUTE: 200_000, Bound.MEMORY: 100_000, Bound.LATENCY: 2_000}


def test_each_ns_of_the_device_is_covered_or_has_its_reason(limit):
    found = limit([
        *big_product(0, 30, 1),
        op("mine::secret", 20, 30, (8, 8)), *launched("secret", 22, 230, 240, 2),
        *launched("orphan", 40, 240, 260, 3),
        *launched("graphed", 50, 260, 290, 4, call="cudaGraphLaunch"),
        op("c10d::allreduce_", 60, 70, (8,)), *launched("ncclDevKernel_AllReduce", 62, 290, 330, 5),
        op("aten::copy_", 80, 90, (8,), (8,)),
        *launched("Memcpy HtoD (Pageable -> Device)", 82, 330, 335, 6, call="cudaMemcpyAsync", kind="gpu_memcpy"),
        event("kernel", "unlinked", 340, 347, thread=7, correlation=99, device=0, stream=7),
    ])  # fmt: skip

    uncovered = {each.reason: each.device_ns for each in found.uncovered}
    apart = {each.reason.split(":")[0]: each.device_ns for each in found.apart}
    assert uncovered == {
        "no rule for mine::secret": 10_000,
        "launched outside of any op": 20_000,
        "launched by graphs, whose ops and shapes are not recorded": 30_000,
    }
    assert apart == {"collectives": 40_000, "copies between host and device": 5_000, "no launch event": 7_000}
    assert found.covered_ns + sum(uncovered.values()) == found.device_ns == 260_000
    assert found.mfu is found.mbu is None
    assert any("less than 90%" in note for note in found.notes)


def test_products_within_an_op_are_not_counted_for_the_op_again(limit):
    shape = (2, 4, 16, 16)
    found = limit([
        op("aten::scaled_dot_product_attention", 0, 100, shape, shape, shape),
        op("aten::bmm", 10, 20, (8, 16, 16), (8, 16, 16)), *launched("gemm", 12, 110, 120, 1),
        op("mine::softmax", 30, 40, (8, 16, 16)), *launched("softmax", 32, 120, 130, 2),
        op("aten::bmm", 50, 60, (8, 16, 16), (8, 16, 16)), *launched("gemm", 52, 130, 140, 3),
    ])  # fmt: skip

    assert found.flops == 2 * 2 * 8 * 16**3
    assert [(each.reason, each.device_ns) for each in found.uncovered] == [
        ("its products are those of ops within it, which are counted", 10_000)
    ]


def test_an_op_around_others_that_move_bytes_alone_keeps_its_own_products(limit):
    shapes = (4, 8, 64), (4, 2, 64), (4, 2, 64), (4, 8, 64)
    tokens = [StepTokens(queries=4, keys=100, pairs=50)]
    found = limit([
        event("step", "ProfilerStep#1", 0, 100),
        op("vllm::unified_attention_with_output", 5, 90, *shapes),
        op("aten::copy_", 10, 20, (4, 8), (4, 8)), *launched("copy", 12, 110, 112, 1),
        *launched("paged_attention", 30, 112, 132, 2),
    ], tokens=tokens)  # fmt: skip

    assert found.flops == 4 * 8 * 64 * 50
    assert found.coverage == 1.0


def test_a_steps_annotation_tells_its_attention(limit):
    shapes = (4, 8, 64), (4, 2, 64), (4, 2, 64), (4, 8, 64)

    def step(name):
        return limit([
            event("step", name, 0, 100),
            op("vllm::unified_attention_with_output", 5, 90, *shapes), *launched("attention", 30, 112, 132, 2),
        ])  # fmt: skip

    assert step("execute_context_1(4_16)_generation_0(0)").flops == 4 * 8 * 64 * 10
    decoding = step("execute_context_0(0)_generation_4(4)")
    assert (decoding.flops, decoding.covered_ns) == (0, 0)
    assert "lengths of its requests" in decoding.uncovered[0].reason


def test_steps_are_chosen_by_number(limit):
    events = [
        event("step", "ProfilerStep#1", 0, 50), *big_product(5, 30, 1),
        event("step", "ProfilerStep#2", 50, 100), *big_product(60, 230, 2), *big_product(75, 430, 3),
    ]  # fmt: skip

    whole, second = limit(events), limit(events, steps=[1])

    assert (whole.ops[0].count, second.ops[0].count) == (3, 2)
    assert second.window_ns == 580_000
    assert second.device_ns == 400_000


def test_another_device_of_the_trace_is_not_mixed_in(limit):
    found = limit([
        *big_product(0, 30, 1),
        op("aten::mm", 20, 30, (64, 64), (64, 64)), *launched("gemm", 22, 230, 240, 2, device=1),
    ])  # fmt: skip

    assert (found.flops, found.device_ns) == (2 * 4096**3, 200_000)


@pytest.mark.parametrize("device", ["", "a device of tomorrow"])
def test_without_ceilings_there_are_rates_and_no_share(limit, device):
    found = limit(big_product(0, 30, 1), device=device)

    assert found.flops_per_s == pytest.approx(2 * 4096**3 / 200e-6)
    assert found.ceilings is found.mfu is found.mbu is found.floor_ns is found.above_ns is found.bound_ns is None
    assert found.compute_ns is found.memory_ns is found.ops[0].floor_ns is found.ops[0].bound is None
    assert found.notes == ("no ceilings are known of this device, so no share of one is told",)


def test_a_type_without_a_ceiling_leaves_its_time_unknown(limit):
    found = limit(big_product(0, 30, 1), device="Tesla V100-SXM2-32GB")

    assert found.compute_ns is found.mfu is found.floor_ns is None
    assert found.memory_ns is not None
    assert found.notes == ("no ceiling is known for products in bf16, so the least time of those is not told",)


def test_measured_ceilings_go_before_the_table(limit, tmp_path):
    reached = MeasuredCeilings(
        flops_per_s={"bf16": Rate(per_s=800e12, by="torch.mm")},
        bytes_per_s={2**20: Rate(per_s=9e12, by="copy"), 2**26: Rate(per_s=3e12, by="copy")},
        shortest_kernel_ns=900,
    )
    with Baselines(tmp_path / "store.sqlite3") as store:
        store.raise_ceilings(Environment(device_type="cuda", device_name=H100, torch="2.9"), reached)

        found = limit(big_product(0, 30, 1), store=store)

    assert found.shortest_kernel_ns == 900
    assert found.compute_ns == round(2 * 4096**3 / 800e12 * 1e9)
    assert found.memory_ns == round(6 * 4096**2 / 3e12 * 1e9)
    assert found.ceilings.sources["bf16"] is found.ceilings.sources["bytes"] is CeilingSource.MEASURED
    assert found.ceilings.sources["fp8"] is CeilingSource.TABLE


def test_without_a_bandwidth_there_is_no_least_time(limit):
    properties = DeviceProperties(device_name="new", capability="9.0", num_sms=132, clock_hz=1_980_000_000)

    found = limit(big_product(0, 30, 1), device="new", properties=properties)

    assert found.memory_ns is found.floor_ns is found.mbu is found.ops[0].bound is None
    assert found.mfu is not None
    assert found.notes == ("the bandwidth of its memory is not known, so no least time is told",)


def test_what_is_faster_than_all_its_ceilings_is_no_share_of_them(limit):
    shapes = (4096, 4096), (4096, 4096)

    found = limit([op("aten::mm", 0, 10, *shapes), *launched("nvjet_gemm", 2, 30, 130, 1)])

    assert found.compute_ns > 1.05 * found.device_ns
    assert found.mfu is found.mbu is None
    assert any("less than the least time of all together" in note for note in found.notes)


def test_what_fits_the_cache_may_be_faster_than_memory_and_what_does_not_is_said(limit):
    def copied(rows, took):
        return limit([op("aten::copy_", 0, 10, (rows, 1024), (rows, 1024)), *launched("copy", 2, 30, 30 + took, 1)])

    small, large = copied(4096, 2), copied(2**20, 2)

    assert small.ops[0].reads_cache
    assert small.floor_ns == (2_000, 2_000)
    assert small.notes == ()
    assert large.above_ns < 0
    assert "faster than the ceilings allow: 1 calls" in large.notes[0]


def test_a_convolution_with_fewer_products_than_counted_is_bound_by_its_bytes(limit):
    image, weight = (32, 512, 28, 28), (512, 512, 3, 3)
    how = ["", "[1, 1]", "[1, 1]", "[1, 1]", "False", "[0, 0]", "1"]

    def convolved(kernel):
        return limit([
            op("aten::convolution", 0, 20, image, weight, type="c10::Half", values=how),
            *launched("transform", 2, 30, 31, 1), *launched(kernel, 4, 31, 60, 2),
            *launched("gemm", 6, 60, 100, 3),
        ])  # fmt: skip

    plain, winograd = convolved("implicit_gemm"), convolved("winograd_4x4")

    assert plain.flops == winograd.flops > 0
    assert plain.floor_ns == (plain.compute_ns, plain.compute_ns)
    assert winograd.floor_ns == (winograd.memory_ns, winograd.memory_ns)


@pytest.mark.parametrize(
    ("events", "with_calls", "reason"),
    [
        ([event("op", "aten::mm", 0, 10), *launched("gemm", 2, 30, 40, 1)], True, "recorded without shapes"),
        ([op("aten::mm", 0, 10, (2, 2), (2, 2)), *launched("gemm", 2, 30, 40, 1)], False, "read without the calls"),
    ],
)
def test_where_nothing_is_known_there_is_one_reason(limit, events, with_calls, reason):
    told = limit(events, with_calls=with_calls)

    assert isinstance(told, str)
    assert reason in told


@pytest.mark.parametrize(
    ("name", "coverage"),
    [
        ("h100_hf_bert-small_infer", 0.98),
        ("h100_hf_timesformer_infer", 0.98),
        ("v100_kineto_resnet50_train", 0.98),
    ],
)
def test_eager_traces_are_covered_and_run_no_faster_than_their_devices_can(real_trace, name, coverage):
    with Recording.open(real_trace(name), with_calls=True) as recording:
        found = limit_of(recording)

    assert isinstance(found, Limit)
    assert found.coverage >= coverage
    assert found.notes == ()
    assert 0 < found.floor_ns[0] <= found.floor_ns[1] <= found.covered_ns
    assert sum(found.bound_ns.values()) == sum(part.device_ns for part in found.parts.values()) == found.covered_ns


def test_what_a_graph_hides_is_told_and_no_share_of_a_ceiling(trace_path):
    with Recording.open(trace_path, with_calls=True) as recording:
        found = limit_of(recording)

    if isinstance(found, str):
        return
    lost = sum(each.device_ns for each in found.uncovered)
    assert found.covered_ns + lost == found.device_ns
    assert (found.mfu is None) == (found.ceilings is None or found.coverage < 0.9)


def test_on_a_cpu_each_op_is_its_own_kernel_and_none_is_the_shortest(limit):
    found = limit([
        op("aten::linear", 0, 100, (8, 16), (32, 16), (32,), type="float"),
        op("aten::addmm", 10, 90, (32,), (8, 16), (16, 32), type="float"),
    ], device=None)  # fmt: skip

    assert found.flops == 2 * 8 * 16 * 32 + 8 * 32
    assert found.shortest_kernel_ns is None
    assert [row.op for row in found.ops] == ["aten::addmm"]
