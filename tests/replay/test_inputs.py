"""Arguments made from a recorded call: what is profiled, made again and profiled again gives the same signature."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import trials

torch = pytest.importorskip("torch", reason="replay needs torch")

from taxbreak_vllm.replay.inputs import (  # noqa: E402 - after the check for torch
    DTYPES,
    RefusedError,
    Size,
    TooLargeError,
    prepare,
    resized,
)
from taxbreak_vllm.trace.calls import Call, Input  # noqa: E402
from taxbreak_vllm.trace.events import EventKind  # noqa: E402
from taxbreak_vllm.trace.read.kineto import read_events  # noqa: E402

F = torch.nn.functional
BF16, F16, F32, F64, I64 = torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64


def x(*dims, dtype=F32):
    return torch.ones(dims, dtype=dtype)


def ids(*dims, below):
    return torch.arange(math.prod(dims)).reshape(dims) % below


# What a model's step is made of, and what a schema can hold: each is one real call.
OPS = {
    "add": lambda: x(4, 8) + x(4, 8),
    "add a number": lambda: x(4, 8) + 2.5,
    "add a number to integers": lambda: ids(4, below=3) + 2.5,
    "add with alpha": lambda: torch.add(x(4), x(4), alpha=2),
    "add_ of bf16": lambda: x(4, 8, dtype=BF16).add_(x(4, 8, dtype=BF16)),
    "sub of a broadcast row": lambda: x(4, 8) - x(8).expand(4, 8),
    "mul of fp16": lambda: x(4, 8, dtype=F16) * x(1, 8, dtype=F16),
    "mul of doubles": lambda: x(3, dtype=F64) * x(3, dtype=F64),
    "mul of complex": lambda: x(3, dtype=torch.complex64) * x(3, dtype=torch.complex64),
    "div": lambda: x(4, 8) / x(4, 1),
    "floor_divide": lambda: ids(8, below=5).floor_divide(3),
    "remainder": lambda: ids(8, below=5) % 3,
    "pow": lambda: x(4, 8).pow(2),
    "rsqrt": lambda: x(4, 8).rsqrt(),
    "exp of a slice": lambda: x(8, 16)[:, 3:11].exp(),
    "cos of a transposed": lambda: x(8, 16).t().cos(),
    "neg of every second": lambda: -x(4, 16)[:, ::2],
    "clamp": lambda: x(4).clamp(min=0.0, max=1.0),
    "clamp below": lambda: x(4).clamp(min=0.5),
    "silu": lambda: F.silu(x(4, 8)),
    "eq": lambda: x(4) == x(4),
    "lt a number": lambda: ids(4, below=4) < 2,
    "logical_not": lambda: x(4, dtype=torch.bool).logical_not(),
    "bitwise_and of uint8": lambda: x(4, dtype=torch.uint8) & x(4, dtype=torch.uint8),
    "sum": lambda: x(4, 8).sum(),
    "sum over an axis": lambda: x(4, 8).sum(dim=-1, keepdim=True),
    "sum of bf16 as float": lambda: x(4, 8, dtype=BF16).sum(-1, dtype=F32),
    "mean": lambda: x(4, 8).mean(dim=(0, 1)),
    "amax": lambda: x(4, 8).amax(1),
    "argmax": lambda: x(4, 8).argmax(dim=-1),
    "max over an axis": lambda: x(4, 8).max(dim=1),
    "cumsum": lambda: x(4, 8).cumsum(1),
    "topk": lambda: x(4, 8).topk(2, dim=-1),
    "sort": lambda: x(4, 8).sort(dim=-1, descending=True),
    "softmax": lambda: x(4, 8).softmax(-1),
    "softmax of bf16 as float": lambda: torch.softmax(x(4, 8, dtype=BF16), -1, dtype=F32),
    "log_softmax": lambda: x(4, 8).log_softmax(-1),
    "layer_norm": lambda: F.layer_norm(x(4, 8), (8,), x(8), x(8), 1e-6),
    "layer_norm without weights": lambda: F.layer_norm(x(4, 8), (8,)),
    "rms_norm": lambda: F.rms_norm(x(4, 8), (8,), x(8), 1e-6),
    "mm": lambda: x(4, 8) @ x(8, 6),
    "mm of a transposed": lambda: x(4, 8) @ x(6, 8).t(),
    "mm of bf16": lambda: x(4, 8, dtype=BF16) @ x(8, 6, dtype=BF16),
    "bmm": lambda: torch.bmm(x(2, 4, 8), x(2, 8, 6)),
    "matmul of many axes": lambda: x(2, 3, 4, 8) @ x(8, 6),
    "addmm": lambda: torch.addmm(x(6), x(4, 8), x(8, 6), beta=0.5, alpha=2),
    "linear": lambda: F.linear(x(4, 8), x(6, 8), x(6)),
    "linear without bias": lambda: F.linear(x(2, 4, 8), x(6, 8)),
    "conv1d": lambda: F.conv1d(x(1, 3, 9), x(5, 3, 3), padding=1),
    "conv2d": lambda: F.conv2d(x(1, 3, 9, 9), x(5, 3, 3, 3), x(5), stride=2),
    "attention": lambda: F.scaled_dot_product_attention(x(1, 2, 4, 8), x(1, 2, 4, 8), x(1, 2, 4, 8), is_causal=True),
    "embedding": lambda: F.embedding(ids(4, below=10), x(10, 8)),
    "index_select": lambda: x(10, 8).index_select(0, ids(4, below=10)),
    "index_select of a later axis": lambda: x(8, 10).index_select(-1, ids(4, below=10)),
    "gather": lambda: x(4, 9).gather(-1, ids(4, 2, below=9)),
    "scatter_": lambda: x(4, 9).scatter_(1, ids(4, 2, below=9), x(4, 2)),
    "scatter_ a number": lambda: x(4, 9).scatter_(1, ids(4, 2, below=9), 1.0),
    "index_add_": lambda: x(10, 8).index_add_(0, ids(4, below=10), x(4, 8)),
    "cat": lambda: torch.cat([x(2, 8), x(3, 8)], dim=0),
    "stack": lambda: torch.stack([x(8), x(8), x(8)]),
    "split": lambda: x(4, 9).split([2, 3, 4], dim=-1),
    "chunk": lambda: x(4, 8).chunk(2, dim=-1),
    "copy_": lambda: x(4, 8).copy_(x(4, 8, dtype=BF16)),
    "to another dtype": lambda: x(4, 8).to(BF16),
    "to fp8": lambda: x(4, 8).to(torch.float8_e4m3fn),
    "from fp8": lambda: x(4, 8).to(torch.float8_e5m2).to(F32),
    "to int8": lambda: x(4, 8).to(torch.int8),
    "clone in channels last": lambda: x(1, 3, 4, 4).clone(memory_format=torch.channels_last),
    "contiguous": lambda: x(4, 8).t().contiguous(),
    "where": lambda: torch.where(x(4, 8, dtype=torch.bool), x(4, 8), x(4, 8)),
    "masked_fill_": lambda: x(4, 8).masked_fill_(x(4, 8, dtype=torch.bool), -1.0),
    "full": lambda: torch.full((4, 8), 1.5),
    "zeros_like": lambda: torch.zeros_like(x(4, 8)),
    "zero_": lambda: x(4, 8).zero_(),
    "fill_": lambda: x(4, 8).fill_(3),
    "arange": lambda: torch.arange(0, 8),
    "arange of floats": lambda: torch.arange(0, 8, 2, dtype=F32),
    "empty": lambda: torch.empty(4, 8, dtype=BF16),
    "view": lambda: x(4, 8).view(2, 16),
    "reshape": lambda: x(4, 8).t().reshape(-1),
    "expand": lambda: x(1, 8).expand(4, -1),
    "permute": lambda: x(2, 3, 4).permute(2, 0, 1),
    "slice": lambda: x(8, 8)[2:6],
    "select": lambda: x(8, 8)[3],
    "unsqueeze": lambda: x(8).unsqueeze(-1),
    "repeat": lambda: x(2, 3).repeat(2, 2),
    "pad": lambda: F.pad(x(2, 3), (1, 1)),
    "tril": lambda: x(4, 4).tril(-1),
    "outer": lambda: torch.outer(x(4), x(5)),
    "a scalar": lambda: x() + x(),
    "no elements": lambda: x(0, 8) + x(0, 8),
    "_foreach_mul_": lambda: torch._foreach_mul_([x(2), x(3)], 2.0),
}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Profile a call as a worker does; return the root ops in their order, each as the calls of itself and its ops."""
    path = tmp_path_factory.mktemp("inputs") / "trace.json"

    def profiled(call):
        with (
            torch.inference_mode(),
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
        ):
            call()
        profile.export_chrome_trace(str(path))
        events = read_events(path, with_calls=True)
        calls = events.calls
        rows = events.rows(EventKind.OP)
        roots, root_end = [], -1
        for number in np.lexsort((-events.end_ns[rows], events.start_ns[rows])).tolist():
            if events.start_ns[rows[number]] >= root_end:
                roots.append([])
                root_end = events.end_ns[rows[number]]
            roots[-1].append(calls.calls[calls.call_of_op[number]])
        return roots

    return profiled


@pytest.mark.parametrize("name", OPS)
def test_a_real_call_made_again_from_its_record_is_recorded_the_same(profiled, name):
    *_, recorded = profiled(OPS[name])  # what made its inputs came before it

    again = profiled(prepare(recorded[0], device="cpu", max_bytes=2**20))

    assert again == [recorded]


def views():
    """Tensors as views make them: with axes in any order, sliced, broadcast, of no or one element."""
    axes = st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(("whole", "halved", "broadcast"))), min_size=1, max_size=4
    )
    dtypes = st.sampled_from((F32, BF16, F16, I64, torch.bool, torch.uint8, torch.complex64))
    return st.tuples(axes.flatmap(st.permutations), dtypes, st.randoms(use_true_random=False))


@trials(60)
@given(view=views())
def test_any_view_comes_back_with_its_shape_strides_and_dtype(profiled, view):
    axes, dtype, random = view
    made = torch.ones([2 * n if how == "halved" else 1 if how == "broadcast" else n for n, how in axes], dtype=dtype)
    for axis, (length, how) in enumerate(axes):
        if how == "halved":
            made = made.narrow(axis, 0, length)
        elif how == "broadcast":
            made = made.expand(*(length if i == axis else -1 for i in range(made.dim())))
    made = made.permute(random.sample(range(len(axes)), len(axes)))
    *_, copied = profiled(lambda: torch.empty_like(made).copy_(made))

    again = prepare(copied[0], device="cpu", max_bytes=2**20)

    assert (again.args[1].shape, again.args[1].stride(), again.args[1].dtype) == (made.shape, made.stride(), made.dtype)
    assert profiled(again) == [copied]


PROFILED = sorted(
    {
        value
        for value in vars(torch).values()
        # what is quantized or is less than a byte has no operations of its own
        if isinstance(value, torch.dtype)
        and not str(value).removeprefix("torch.").startswith(("q", "bits"))
        and str(value).removeprefix("torch.").removeprefix("u").removeprefix("int") not in "1234567"
    },
    key=str,
)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", PROFILED, ids=str)
def test_every_dtype_a_tensor_can_have_comes_back(profiled, dtype):
    ((recorded, *_),) = profiled(torch.empty(4, 8, dtype=dtype).t)

    made = prepare(recorded, device="cpu", max_bytes=2**20).args[0]

    assert DTYPES[recorded.inputs[0].type] is dtype
    assert made.dtype is dtype
    assert made.shape == (4, 8)


def test_packed_weights_are_bytes_and_are_made_as_such():
    call = Call("aten::clone", (Input("unsigned char", (64, 128), (128, 1)), Input("")))

    made = prepare(call, device="cpu", max_bytes=2**20).args[0]

    assert (made.dtype, made.shape) == (torch.uint8, (64, 128))


@pytest.mark.parametrize(
    ("name", "position", "below"),
    [
        ("embedding", 1, 10),
        ("index_select", 2, 10),
        ("index_select of a later axis", 2, 10),
        ("gather", 2, 9),
        ("scatter_", 2, 9),
        ("index_add_", 2, 10),
    ],
)
def test_indices_are_valid_for_what_they_index_and_do_not_all_hit_one_row(profiled, name, position, below):
    *_, recorded = profiled(OPS[name])

    made = prepare(recorded[0], device="cpu", max_bytes=2**20).args[position]

    assert int(made.min()) >= 0
    assert int(made.max()) < below
    assert len(made.unique()) > 1


def test_masks_are_mixed_and_data_is_ordinary():
    call = Call("aten::where", (Input("bool", (64,), (1,)), Input("float", (64,), (1,)), Input("float", (64,), (1,))))

    mask, data, _ = prepare(call, device="cpu", max_bytes=2**20).args

    assert 0 < int(mask.sum()) < 64
    assert bool(((data >= 0.5) & (data <= 1)).all())


FLOATS = Input("float", (4, 8), (8, 1))
REFUSED = {
    "no shapes": (Call("aten::relu", None), "recorded without shapes"),
    "no such op": (Call("aten::no_such_op", (FLOATS,)), "no such op"),
    "no such namespace": (Call("nowhere::op", (FLOATS,)), "no such op"),
    "too many arguments": (Call("aten::relu", (FLOATS,) * 4), "as many arguments"),
    "text without a default": (
        Call("aten::einsum", (Input(""), Input("TensorList", ((4, 8),), ((8, 1),)), Input(""))),
        "equation",
    ),
    "a list with None in it": (Call("aten::index", (FLOATS, Input(""))), "indices"),
    "a tensor not recorded": (Call("aten::mm", (FLOATS, Input(""))), "mat2"),
    "an unknown dtype": (Call("aten::relu", (Input("c10::qint8", (4,), (1,)),)), "self"),
    "a generator": (
        Call("aten::normal_", (FLOATS, Input("Scalar", value="0."), Input("Scalar", value="1."), Input(""))),
        "random",
    ),
    "a number that is none": (Call("aten::softmax", (FLOATS, Input("Scalar", value="x"), Input(""))), "'x'"),
    "a number where a tensor belongs": (
        Call("aten::linear", (FLOATS, FLOATS, Input("Scalar", value="1"))),
        "bias is recorded as Scalar",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_trace_does_not_hold_is_refused_with_a_reason(name):
    call, reason = REFUSED[name]

    with pytest.raises(RefusedError, match=reason):
        prepare(call, device="cpu", max_bytes=2**20)


def test_text_with_a_default_takes_it(profiled):
    *_, recorded = profiled(lambda: F.gelu(x(4, 8), approximate="tanh"))

    prepared = prepare(recorded[0], device="cpu", max_bytes=2**20)

    assert prepared.kwargs == {"approximate": "none"}


def test_devices_dtypes_and_memory_formats_are_read_from_their_numbers(profiled):
    *_, recorded = profiled(lambda: torch.empty_like(x(1, 3, 4, 4), dtype=BF16, memory_format=torch.channels_last))

    again = profiled(prepare(recorded[0], device="cpu", max_bytes=2**20))

    assert again == [recorded]


def test_tensors_of_a_list_are_of_the_models_dtype():
    call = Call("aten::cat", (Input("TensorList", ((2, 8), (3, 8)), ((8, 1), (1, 3))), Input("Scalar", value="0")))

    tensors, _ = prepare(call, device="cpu", max_bytes=2**20, dtype="c10::BFloat16").args

    assert [(t.shape, t.stride(), t.dtype) for t in tensors] == [((2, 8), (8, 1), BF16), ((3, 8), (1, 3), BF16)]


@pytest.mark.parametrize(
    "wanted",
    [
        Input("float", (2**38,), (1,)),
        Input("float", (2, 2), (2**38, 1)),  # few elements, far apart
        Input("double", (2**37,)),  # as before strides were recorded
    ],
)
def test_inputs_beyond_the_cap_are_never_made(wanted):
    with pytest.raises(TooLargeError, match=r"1024\.0 GiB"):
        prepare(Call("aten::relu", (wanted,)), device="cpu", max_bytes=2**30)


def test_a_list_of_tensors_counts_against_the_cap_too():
    call = Call("aten::cat", (Input("TensorList", ((2**37,), (2**37,))), Input("Scalar", value="0")))

    with pytest.raises(TooLargeError, match=r"1024\.0 GiB"):
        prepare(call, device="cpu", max_bytes=2**30)


def test_a_broadcast_tensor_costs_what_it_holds():
    prepared = prepare(Call("aten::t", (Input("float", (2**38, 2), (0, 1)),)), device="cpu", max_bytes=2**20)

    assert prepared.args[0].untyped_storage().nbytes() == 8


def dims(call):
    return [recorded.dims for recorded in call.inputs]


def test_without_elements_the_batch_goes_first_then_the_first_tensor_then_all():
    bias, data, weight = Input("float", (6,), (1,)), Input("float", (4, 8), (8, 1)), Input("float", (8, 6), (6, 1))
    two = Call("aten::addmm", (bias, data, weight, Input("Scalar", value="1"), Input("Scalar", value="1")))
    same = Call("aten::add", (data, data, Input("Scalar", value="1")))

    assert [dims(form)[:3] for form in resized(two, Size.ZERO)] == [
        [(6,), (0, 8), (8, 6)],
        [(0,), (4, 8), (8, 6)],
        [(0,), (0, 0), (0, 0)],
    ]
    assert dims(next(resized(same, Size.ZERO)))[:2] == [(0, 8), (0, 8)]


def test_of_unit_size_every_axis_is_one_and_order_and_broadcasts_stay():
    transposed, row = Input("float", (8, 4), (1, 8)), Input("float", (8, 4), (0, 1))

    (form,) = resized(Call("aten::add", (transposed, row, Input("Scalar", value="1"))), Size.UNIT)

    assert dims(form) == [(1, 1), (1, 1), ()]
    assert form.inputs[0].strides == (1, 1)
    assert form.inputs[1].strides == (0, 1)
    assert form.inputs[2].value == "1"


def test_at_full_size_a_call_is_itself():
    call = Call("aten::relu", (FLOATS,))

    assert list(resized(call, Size.FULL)) == [call]
