"""The work of a call: hand-computed, never negative, linear in the batch; told with a reason where it is not known."""

import random
from dataclasses import replace

import pytest

from taxbreak_vllm.limit.experts import experts_met
from taxbreak_vllm.limit.ops.arguments import ELEMENTS, Around, Convolution
from taxbreak_vllm.limit.ops.table import RULES, work_of
from taxbreak_vllm.model.limit import StepTokens, Work
from taxbreak_vllm.trace.calls import Call, Input

BF16, FP32, FP8, INT64, BYTE = "c10::BFloat16", "float", "c10::Float8_e4m3fn", "long int", "unsigned char"
NONE = Input("")


def tensor(*dims, type=BF16, strides=None):
    return Input(type, dims, strides)


def scalar(value):
    return Input("Scalar", value=str(value))


def numbers(*values):
    return Input("ScalarList", value=str(list(values)))


def tensors(*shapes):
    return Input("TensorList", shapes)


CONV = (tensor(1, 3, 8, 8, type=FP32), tensor(4, 3, 3, 3, type=FP32), NONE, numbers(2, 2), numbers(1, 1), numbers(1, 1))
CONV_GRAD = (tensor(1, 4, 4, 4, type=FP32), *CONV[:2], NONE, *CONV[3:], scalar(False), numbers(0, 0), scalar(1))
TRANSPOSED = (numbers(2), numbers(0), numbers(1), scalar(True), numbers(0), scalar(1))
QUERY, KEY = tensor(1, 2, 4, 8), tensor(1, 1, 6, 8)
EXPERTS = (tensor(4, 16), tensor(8, 64, 16), tensor(8, 16, 32), tensor(4, 2, type=FP32), tensor(4, 2, type=INT64))
TOKENS = StepTokens(queries=4, keys=100, pairs=50)
PAGED = (tensor(4, 8, 64), tensor(4, 2, 64), tensor(4, 2, 64), tensor(4, 8, 64), NONE)
OPAQUE = "void CatArrayBatchedCopy_contig<at::native::(anonymous namespace)::OpaqueType<2u>, unsigned int, 2, 128, 1>"

# op, arguments, FLOPs, bytes, dtype, and what stands around the call
BY_HAND = {
    "product": ("aten::mm", (tensor(2, 3), tensor(3, 4)), 48, 2 * (6 + 12 + 8), "bf16"),
    "bias, one addition an output": (
        "aten::addmm",
        (tensor(4), tensor(2, 3), tensor(3, 4), scalar(1), scalar(1)),
        48 + 8,
        2 * (4 + 6 + 12 + 8),
        "bf16",
    ),
    "batch": ("aten::bmm", (tensor(5, 2, 3), tensor(5, 3, 4)), 5 * 48, 5 * 52, "bf16"),
    "four bits on a CPU, 16 outputs a block": (
        "_C::cpu_gemm_wna16",
        (tensor(5, 128), tensor(16, 256, type="int"), tensor(5, 256), tensor(4, 256), NONE, NONE, scalar(8)),
        2 * 5 * 256 * 128,
        2 * 5 * 128 + 4 * 16 * 256 + 2 * 4 * 256 + 2 * 5 * 256,
        "bf16",
    ),
    "four bits on a CPU with a matrix engine, 8 blocks of 32 outputs": (
        "_C::int4_scaled_mm_cpu",
        (tensor(5, 128), tensor(8, 4, 640, type=BYTE), tensor(8, 4, 32, type=BYTE), tensor(8, 4, 32, type=FP32), NONE),
        2 * 5 * 256 * 128,
        2 * 5 * 128 + 8 * 4 * (640 + 32 + 4 * 32) + 2 * 5 * 256,
        "int8",
    ),
    "int8 on a CPU with a matrix engine, four bytes more a row": (
        "_C::int8_scaled_mm_with_quant",
        (tensor(5, 128), tensor(256, 132, type="signed char"), tensor(256, type=FP32), NONE, scalar(15), scalar(True)),
        2 * 5 * 256 * 128,
        2 * 5 * 128 + 256 * 132 + 4 * 256 + 2 * 5 * 256,
        "int8",
    ),
    "batch with packed weights, the output first": (
        "_C::bmm_cpu",
        (tensor(5, 2, 4), tensor(5, 2, 3), tensor(5, 4, 3), scalar(True), NONE),
        5 * 48,
        5 * 52,
        "bf16",
    ),
    "batch with weights that are one": (
        "aten::bmm",
        (tensor(5, 2, 3), tensor(5, 3, 4, strides=(0, 4, 1))),
        5 * 48,
        2 * (30 + 12 + 40),
        "bf16",
    ),
    "8 bits in, 16 out": (
        "aten::_scaled_mm",
        (tensor(16, 32, type=FP8), tensor(32, 16, type=FP8)),
        2 * 16 * 16 * 32,
        512 + 512 + 2 * 256,
        "fp8",
    ),
    "output first": (
        "_C::cutlass_scaled_mm",
        (tensor(2, 4), tensor(2, 3, type=FP8), tensor(3, 4, type=FP8)),
        48,
        16 + 6 + 12,
        "fp8",
    ),
    "two values in a byte": (
        "_C::cutlass_scaled_fp4_mm",
        (tensor(2, 4), tensor(2, 8, type=BYTE), tensor(4, 8, type=BYTE)),
        2 * 2 * 4 * 16,
        16 + 16 + 32,
        "fp4",
    ),
    "weights by rows": (
        "aten::linear",
        (tensor(2, 3, 4), tensor(5, 4), NONE),
        2 * 6 * 5 * 4,
        2 * (24 + 20 + 30),
        "bf16",
    ),
    "weights behind a handle": (
        "_C::onednn_mm",
        (tensor(2, 4, type=FP32), tensor(2, 3, type=FP32), NONE, tensor(type=INT64)),
        48,
        4 * (8 + 6 + 12),
        "fp32",
    ),
    "four-bit weights": (
        "_C::awq_gemm",
        (tensor(2, 8), tensor(8, 2, type="int"), tensor(1, 16), tensor(1, 2, type="int"), scalar(8)),
        2 * 2 * 16 * 8,
        32 + 64 + 32 + 8 + 64,
        "bf16",
    ),
    "convolution": (
        "aten::convolution",
        (*CONV, scalar(False), numbers(0, 0), scalar(1)),
        2 * 64 * 27,
        4 * (192 + 108 + 64),
        "fp32",
    ),
    "transposed": (
        "aten::convolution",
        (tensor(1, 4, 4, 4), tensor(4, 3, 2, 2), NONE, *TRANSPOSED),
        2 * 64 * 12,
        2 * (64 + 48 + 3 * 64),
        "bf16",
    ),
    "both gradients": (
        "aten::convolution_backward",
        (*CONV_GRAD, numbers(True, True, False)),
        2 * 3456,
        4 * (64 + 2 * 108 + 2 * 192),
        "fp32",
    ),
    "gradient of the weights alone": (
        "aten::convolution_backward",
        (*CONV_GRAD, numbers(False, True, False)),
        3456,
        4 * (64 + 108 + 192),
        "fp32",
    ),
    "causal attention, two heads to a key": (
        "aten::_scaled_dot_product_flash_attention",
        (QUERY, KEY, KEY, scalar(0.0), scalar(True)),
        4 * 2 * (4 * 6 - 6) * 8,
        2 * (64 + 48 + 48 + 64),
        "bf16",
    ),
    "attention without a mask": (
        "aten::_scaled_dot_product_flash_attention",
        (QUERY, KEY, KEY, scalar(0.0), scalar(False)),
        4 * 2 * 24 * 8,
        2 * (64 + 48 + 48 + 64),
        "bf16",
    ),
    "paged attention of a step": (
        "vllm::unified_attention_with_output",
        PAGED,
        4 * 8 * 64 * 50,
        2 * (2 * 4 * 8 * 64) + 100 * 2 * 128 * 2,
        "bf16",
        Around(tokens=TOKENS),
    ),
    "latent attention": (
        "vllm::unified_mla_attention_with_output",
        (tensor(4, 8, 192), tensor(4, 512), tensor(4, 1, 64), NONE),
        2 * 8 * 50 * (2 * 512 + 64),
        2 * (4 * 8 * 1088 + 100 * 576),
        "bf16",
        Around(tokens=TOKENS),
    ),
    "experts": ("vllm::outplace_fused_experts", EXPERTS, 2 * 4 * 2 * 1536, 2 * 3072 + 256 + 64 + 32, "bf16"),
    "norm with a residual": ("_C::fused_add_rms_norm", (tensor(4, 8), tensor(4, 8), tensor(8)), 0, 4 * 64 + 16, "bf16"),
    "norm": ("aten::native_layer_norm", (tensor(4, 8), numbers(8), tensor(8), tensor(8)), 0, 2 * 64 + 32, "bf16"),
    "half of each head turned": (
        "_C::rotary_embedding",
        (tensor(4, type=INT64), tensor(4, 64), tensor(4, 32), scalar(16), tensor(100, 8), scalar(True)),
        0,
        2 * (256 + 128) + 32 + 4 * 8 * 2,
        "bf16",
    ),
    "cache in 8 bits": (
        "_C_cache_ops::reshape_and_cache_flash",
        (tensor(4, 2, 8), tensor(4, 2, 8), tensor(9, 16, 2, 8, type=BYTE), tensor(9, 16, 2, 8, type=BYTE)),
        0,
        2 * 128 + 128,
        "bf16",
    ),
    "broadcast": ("aten::add", (tensor(4, 1), tensor(8), scalar(1)), 0, 2 * (4 + 8 + 32), "bf16"),
    "a wider result": ("aten::mul", (tensor(8), tensor(8, type=FP32)), 0, 16 + 32 + 32, "fp32"),
    "a number does not widen": ("aten::mul", (tensor(8), tensor(type="double")), 0, 16 + 8 + 16, "bf16"),
    "truths": ("aten::eq", (tensor(8, type=INT64), scalar(1)), 0, 64 + 8, "int64"),
    "in place": ("aten::add_", (tensor(8), tensor(8, type=FP32)), 0, 16 + 32 + 16, "fp32"),
    "copied from one row": ("aten::copy_", (tensor(4, 8), tensor(4, 8, strides=(0, 1))), 0, 64 + 16, "bf16"),
    "windows that overlap": ("aten::sum", (tensor(5, 4, strides=(1, 1)),), 0, 2 * 8, "bf16"),
    "joined, its type in the kernel's name": (
        "aten::cat",
        (tensors((2, 3), (4, 3)), scalar(0)),
        0,
        2 * 2 * 18,
        "2 bytes",
        Around(kernel=OPAQUE),
    ),
    "rows of a table": ("aten::embedding", (tensor(1000, 8), tensor(3, type=INT64)), 0, 2 * 3 * 16 + 24, "bf16"),
    "indexed": ("aten::index", (tensor(10, 8), tensors((3,))), 0, 2 * 24 * 2 + 24, "bf16"),
    "best of a row": ("aten::topk", (tensor(2, 10), scalar(3), scalar(-1)), 0, 40 + 6 * 10, "bf16"),
    "softmax": ("aten::_softmax", (tensor(2, 8), scalar(-1), scalar(False)), 0, 64, "bf16"),
    "generated": ("triton_poi_fused_add_0", (tensor(8), tensor(8), tensor(8), scalar(8)), 0, 48, "bf16"),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND.values(), ids=BY_HAND)
def test_the_work_of_a_call_is_what_a_hand_counts(case):
    op, inputs, flops, num_bytes, dtype, *around = case

    work = work_of(Call(op, inputs), *around)

    assert isinstance(work, Work), work
    assert (work.flops, work.bytes, work.dtype, work.is_matrix) == (flops, num_bytes, dtype, flops > 0)


def test_experts_are_an_interval_from_the_same_for_all_to_uniform_choices():
    work = work_of(Call("vllm::outplace_fused_experts", EXPERTS))

    assert work.most_bytes - work.bytes == round(8 * (1 - 0.75**4) * 3072) - 2 * 3072
    assert experts_met(8, 2, 1) == (2, pytest.approx(2))
    assert experts_met(8, 2, 10_000) == (2, pytest.approx(8))
    assert experts_met(8, 2, 0) == (0, 0)


def test_single_precision_is_the_matrix_engines_only_where_the_kernel_says_so():
    call = Call("aten::mm", (tensor(2, 3, type=FP32), tensor(3, 4, type=FP32)))

    names = {kernel: work_of(call, Around(kernel=kernel)).dtype for kernel in ("", "volta_sgemm_64x64_nn")}
    fast = [work_of(call, Around(kernel=f"cutlass_80_tensorop_{word}gemm")).dtype for word in ("s1688", "tf32_s16816")]

    assert set(names.values()) == {"fp32"}
    assert fast == ["tf32", "tf32"]


def test_a_reduced_algorithm_is_marked():
    work = work_of(
        Call("aten::convolution", (*CONV, scalar(False), numbers(0, 0), scalar(1))), Around(kernel="winograd")
    )

    assert work.is_reduced
    assert work.flops == 3456


@pytest.mark.parametrize("part", ["input", "weight"])
def test_older_traces_tell_a_convolution_by_its_backward_call(part):
    image, weight, grad = CONV[0], CONV[1], CONV_GRAD[0]
    lists = [Input("GenericList")] * 3
    outer = Call("aten::cudnn_convolution_backward", (image, grad, weight, *lists))
    known = Convolution(image.dims, weight.dims, grad.dims)

    forward = work_of(Call("aten::cudnn_convolution", (image, weight, *lists)), Around(convolutions=frozenset([known])))
    backward = work_of(Call(f"aten::cudnn_convolution_backward_{part}", ()), Around(outer=outer))

    assert forward.flops == backward.flops == 3456
    other = replace(known, output=(1, 4, 8, 8))
    two = Around(convolutions=frozenset([known, other]))
    assert isinstance(work_of(Call("aten::cudnn_convolution", (image, weight, *lists)), two), str)


FAULTS = {
    "no rule": ("aten::unheard_of", (tensor(2),), "no rule for aten::unheard_of"),
    "no shapes": ("aten::mm", None, "recorded without shapes"),
    "unknown type": ("aten::mm", (tensor(2, 3, type="c10::Posit"), tensor(3, 4)), "unknown element type 'c10::Posit'"),
    "too few arguments": ("aten::mm", (tensor(2, 3),), "argument 1 was not recorded"),
    "shapes that do not fit": ("aten::mm", (tensor(2, 3), tensor(5, 4)), "do not fit"),
    "axes": ("aten::bmm", (tensor(2, 3), tensor(3, 4)), "argument 0 has 2 axes, not 3"),
    "no strides of a convolution": ("aten::convolution", (*CONV[:3], NONE, NONE, NONE), "were not recorded"),
    "no lengths": ("vllm::unified_attention_with_output", PAGED, "lengths of its requests are not in the trace"),
    "heads": ("aten::_flash_attention_forward", (tensor(1, 4, 3, 8), *[tensor(1, 4, 2, 8)] * 2), "do not fit"),
    "experts behind the layer": ("vllm::moe_forward", (tensor(4, 16), tensor(4, 8), NONE), "not among its arguments"),
    "type of a list": ("aten::cat", (tensors((2, 3)), scalar(0)), "element type of its list"),
    "no size of any tensor": ("aten::mm", (tensor(2**40, 2**21), tensor(2**21, 3)), "not those that its rule knows"),
    "no shape": ("aten::sum", (Input(BF16, (-1, 4)),), "is no shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS)
def test_what_a_trace_lacks_is_told_in_one_line(case):
    op, inputs, reason = case

    told = work_of(Call(op, inputs))

    assert isinstance(told, str)
    assert reason in told
    assert "\n" not in told


LINEAR = {
    "aten::mm": lambda n: (tensor(n, 3), tensor(3, 4)),
    "aten::bmm": lambda n: (tensor(n, 2, 3), tensor(n, 3, 4)),
    "aten::linear": lambda n: (tensor(n, 7, 3), tensor(4, 3), tensor(4)),
    "aten::convolution": lambda n: (tensor(n, 3, 8, 8), *CONV[1:], scalar(False), numbers(0, 0), scalar(1)),
    "aten::_scaled_dot_product_flash_attention": lambda n: (tensor(n, 2, 4, 8), tensor(n, 1, 6, 8), tensor(n, 1, 6, 8)),
    "aten::native_layer_norm": lambda n: (tensor(n, 8), numbers(8), tensor(8), tensor(8)),
    "aten::add": lambda n: (tensor(n, 8), tensor(8)),
    "aten::copy_": lambda n: (tensor(n, 8), tensor(n, 8)),
    "aten::embedding": lambda n: (tensor(1000, 8), tensor(n, type=INT64)),
    "aten::_softmax": lambda n: (tensor(n, 8), scalar(-1)),
}


@pytest.mark.parametrize("op", LINEAR)
def test_work_is_linear_in_the_batch_with_weights_read_once(op):
    one, two, many = (work_of(Call(op, LINEAR[op](n))) for n in (1, 2, 101))

    assert many.flops == 101 * one.flops
    assert many.bytes - one.bytes == 100 * (two.bytes - one.bytes) > 0


def test_no_arguments_whatever_make_a_rule_fail_or_count_below_zero():
    chance = random.Random(17)
    types = [*ELEMENTS, "", "Scalar", "ScalarList", "TensorList", "GenericList", "c10::Strange"]

    def argument():
        type = chance.choice(types)
        dims = tuple(chance.choice((0, 1, 2, 3, 4, 8)) for _ in range(chance.randrange(5)))
        if type == "TensorList":
            return Input(type, tuple(dims for _ in range(chance.randrange(3))))
        strides = chance.choice((None, tuple(chance.choice((0, 1, 4)) for _ in dims)))
        return Input(
            type, dims, strides, chance.choice(("", "0", "1", "-1", "[1, 1]", "[2]", "[0, 0]", "True", "1e-5"))
        )

    answers = []
    for op in RULES:
        for _ in range(12):
            call = Call(op, tuple(argument() for _ in range(chance.randrange(12))))
            around = Around(kernel=chance.choice(("", OPAQUE)), tokens=chance.choice((None, TOKENS)), outer=call)
            answers.append(work_of(call, around))

    works = [answer for answer in answers if isinstance(answer, Work)]
    assert len(works) > 300
    assert all(work.flops >= 0 and work.bytes >= 0 and work.dtype for work in works)
    assert all(answer and "\n" not in answer for answer in answers if isinstance(answer, str))


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("_C::mla_decode_kvcache", (tensor(4, 8, 512), tensor(4, 8, 576))),
        ("_C::decode_attention_cpu", (tensor(4, 8, 576), NONE, NONE, tensor(4, 8, 512))),
        ("_C::extend_attention_cpu", (tensor(4, 8, 576), NONE, NONE, tensor(4, 8, 512))),
    ],
)
def test_latent_attention_on_a_cpu_is_that_of_all_its_steps_requests_or_not_known(op, inputs):
    def attended(tokens):
        return work_of(Call(op, inputs), Around(tokens=tokens))

    work = attended(TOKENS)
    assert work.flops == 2 * 8 * 50 * (2 * 512 + 64)
    assert work.bytes == 2 * (4 * 8 * (512 + 576) + 100 * 576)
    assert "which of its step's requests" in attended(replace(TOKENS, queries=5))


def test_a_window_of_attention_is_no_work_that_is_known():
    cache = tensor(9, 2, 16, 64)

    def attended(window):
        inputs = (tensor(4, 8, 64), cache, cache, tensor(4, 8, 64), *[NONE] * 5, scalar(window))
        return work_of(Call("_C::cpu_attention_with_kv_cache", inputs), Around(tokens=TOKENS))

    assert attended(-1).flops == 4 * 8 * 64 * 50
    assert "window of 128" in attended(128)
