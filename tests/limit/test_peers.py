"""Torch's own counter, an independent implementation, counts the same FLOPs on calls of every shape."""

import random

import pytest

from taxbreak_vllm.limit.ops.table import work_of
from taxbreak_vllm.trace.calls import Call, Input

torch = pytest.importorskip("torch")
counter = pytest.importorskip("torch.utils.flop_counter")


def recorded(op, *arguments):
    """The call as a profiler would record it."""

    def one(value):
        if isinstance(value, torch.Tensor):
            return Input("float", tuple(value.shape), tuple(value.stride()))
        if value is None:
            return Input("")
        return Input("ScalarList" if isinstance(value, list) else "Scalar", value=str(value))

    return Call(op, tuple(map(one, arguments)))


def counted(op, *arguments):
    """FLOPs by torch and by us."""
    namespace, name = op.split("::")
    with counter.FlopCounterMode(display=False) as mode:
        getattr(getattr(torch.ops, namespace), name).default(*arguments)
    return mode.get_total_flops(), work_of(recorded(op, *arguments)).flops


def empty(*dims):
    return torch.empty(dims, device="meta")


def sizes(chance, count, most=40):
    return [chance.randint(1, most) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_products(seed):
    b, m, n, k = sizes(random.Random(seed), 4)

    for op, *arguments in (
        ("aten::mm", empty(m, k), empty(k, n)),
        ("aten::mm", empty(k, m).t(), empty(n, k).t()),
        ("aten::bmm", empty(b, m, k), empty(b, k, n)),
    ):
        theirs, ours = counted(op, *arguments)
        assert ours == theirs
    theirs, ours = counted("aten::addmm", empty(n), empty(m, k), empty(k, n))
    assert ours == theirs + m * n  # the bias, which torch does not count


@pytest.mark.parametrize("seed", range(30))
def test_convolutions(seed):
    chance = random.Random(seed)
    axes = chance.randint(1, 3)
    batch, channels_in, channels_out = sizes(chance, 3, 6)
    groups = chance.choice((1, 2, 3))
    is_transposed = chance.random() < 0.3
    window, stride, padding, dilation = ([chance.randint(low, 3) for _ in range(axes)] for low in (1, 1, 0, 1))
    image = empty(batch, channels_in * groups, *(chance.randint(9, 16) for _ in range(axes)))
    first, second = (channels_in, channels_out) if is_transposed else (channels_out, channels_in)
    weight = empty(first * groups, second, *window)
    how = (stride, padding, dilation, is_transposed, [0] * axes, groups)

    theirs, ours = counted("aten::convolution", image, weight, None, *how)

    assert ours == theirs > 0


@pytest.mark.parametrize("mask", [[True, True, False], [True, False, False], [False, True, False]], ids=str)
def test_gradients_of_convolutions(mask):
    image, weight, grad = empty(2, 3, 12, 12), empty(5, 3, 3, 3), empty(2, 5, 6, 6)
    how = ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)

    theirs, ours = counted("aten::convolution_backward", grad, image, weight, None, *how, mask)

    assert ours == theirs > 0


@pytest.mark.parametrize("seed", range(10))
def test_attention(seed):
    chance = random.Random(seed)
    batch, heads, queries, keys = sizes(chance, 4)
    size = 8 * chance.randint(1, 8)
    query, key = empty(batch, heads, queries, size), empty(batch, heads, keys, size)

    theirs, ours = counted("aten::_scaled_dot_product_flash_attention", query, key, key, 0.0, False)

    assert ours == theirs > 0


def test_gradients_of_attention():
    query, key = empty(2, 3, 16, 32), empty(2, 3, 24, 32)
    sums, number = empty(2, 3, 16), torch.empty((), dtype=torch.long, device="meta")
    given = (query, query, key, key, query, sums, None, None, 16, 24, 0.0, False, number, number)

    theirs, ours = counted("aten::_scaled_dot_product_flash_attention_backward", *given)

    assert ours == theirs > 0
