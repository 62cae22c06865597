import gc
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from taxbreak_vllm.serving.tokens import SampledTokens


class _Fetched:
    def __init__(self, *sampled):
        self.sampled_token_ids = list(sampled)
        self.req_id_to_index = {"a": 0, "b": 1}


class _Pending:
    """An output whose tokens are still on their way; notes how it was asked for them."""

    def __init__(self, fetched=None, error=None):
        self.fetched = fetched
        self.error = error
        self.calls = []
        self.sampled_token_ids = np.zeros((2, 4), dtype=int)

    def get_output(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        if self.error is not None:
            raise self.error
        return self.fetched


def _follow(output, drafted=()):
    tokens = SampledTokens(drafted=drafted)
    tokens.follow(output)
    return tokens


def test_tokens_at_hand_are_counted_at_once():
    tokens = _follow(_Fetched([1, 2, 3], [4]), drafted=["a", "b", "gone"])

    assert tokens.wait(0)
    assert (tokens.counts, tokens.is_async) == ((4, 2), False)


def test_a_step_that_samples_nothing_has_none_and_none_to_wait_for():
    pooled = _Pending()

    tokens = SampledTokens.none(pooled)

    assert tokens.wait(0)
    assert (tokens.counts, tokens.is_async) == ((0, 0), True)
    assert "get_output" not in vars(pooled)


def test_tokens_on_their_way_are_counted_by_the_call_that_fetches_them_on_whatever_thread():
    output = _Pending(_Fetched([1], [2, 3]))
    tokens = _follow(output, drafted=["b"])
    got = []
    thread = threading.Thread(target=lambda: got.append(output.get_output()))

    assert (tokens.counts, tokens.is_async) == ((None, None), True)
    assert output.calls == []
    thread.start()

    assert tokens.wait(20)
    assert tokens.counts == (3, 1)
    thread.join()
    assert got == [output.fetched]


def test_the_caller_gets_what_it_would_have_got_however_often_and_however_it_asks():
    output = _Pending(_Fetched([1]))
    _follow(output)

    assert output.get_output(1, of="two") is output.fetched
    assert output.get_output() is output.fetched
    assert output.calls == [((1,), {"of": "two"}), ((), {})]


@pytest.mark.parametrize("error", [RuntimeError("of the device"), KeyboardInterrupt()])
def test_an_error_of_the_device_passes_unchanged_and_leaves_the_tokens_unknown(error):
    output = _Pending(error=error)
    tokens = _follow(output)

    with pytest.raises(type(error)) as caught:
        output.get_output()

    assert caught.value is error
    assert tokens.wait(0)
    assert tokens.counts == (None, 0)


@pytest.mark.parametrize(
    "fetched",
    [
        None,
        SimpleNamespace(sampled_token_ids=np.zeros((2, 4))),  # padded: its length says nothing
        SimpleNamespace(sampled_token_ids=None),
        SimpleNamespace(sampled_token_ids=[1, 2]),
    ],
)
def test_what_cannot_be_counted_is_unknown_and_served_all_the_same(fetched):
    output = _Pending(fetched)
    tokens = _follow(output, drafted=["a"])

    assert output.get_output() is fetched
    assert tokens.wait(0)
    assert tokens.counts == (None, None)


def test_an_output_that_names_no_requests_costs_the_drafts_alone():
    tokens = _follow(SimpleNamespace(sampled_token_ids=[[1, 2]]), drafted=["a"])

    assert tokens.counts == (2, None)


def test_an_output_that_takes_no_attribute_is_left_as_it_is():
    class _Slotted:
        __slots__ = ()

        def get_output(self):
            return "tokens"

    output = _Slotted()
    tokens = _follow(output)

    assert output.get_output() == "tokens"
    assert tokens.wait(0)
    assert (tokens.counts, tokens.is_async) == ((None, 0), True)


@pytest.mark.parametrize("is_fetched", [True, False])
def test_an_output_is_freed_as_soon_as_vllm_is_done_with_it(is_fetched):
    """It holds memory of the device; a cycle would keep that until the collector comes, which it may not for hours."""
    output = _Pending(_Fetched([1]))
    is_gone = weakref.ref(output)
    tokens = _follow(output)
    gc.disable()
    try:
        if is_fetched:
            output.get_output()
        else:
            assert not tokens.wait(0)
        del output

        assert is_gone() is None
    finally:
        gc.enable()


def test_a_call_that_comes_after_the_wait_for_it_ended_is_served():
    output = _Pending(_Fetched([1]))
    tokens = _follow(output)
    late = output.get_output
    assert not tokens.wait(0)

    assert late() is output.get_output() is output.fetched
