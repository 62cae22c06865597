"""What a step batches: sums over its requests, and a digest that differs wherever one request or one token does."""

from types import SimpleNamespace

import pytest

from taxbreak_vllm.traffic.batch import batch_of, numbers_of_names


def step(tokens, new=(), cached=(), resumed=(), drafts=None):
    """A SchedulerOutput: tokens by id, new requests as (id, computed), cached ones as (id, computed, outputs)."""
    ids, computed, outputs = zip(*cached, strict=True) if cached else ((), (), ())
    return SimpleNamespace(
        num_scheduled_tokens=tokens,
        scheduled_new_reqs=[SimpleNamespace(req_id=req_id, num_computed_tokens=num) for req_id, num in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(ids),
            num_computed_tokens=list(computed),
            num_output_tokens=list(outputs),
            resumed_req_ids=set(resumed),
        ),
        scheduled_spec_decode_tokens=drafts or {},
    )


def test_prompts_and_decodes_are_told_apart():
    scheduled = step(
        {"1": 1, "2": 50, "3": 30, "4": 9},
        new=[("2", 16)],
        cached=[("1", 120, 4), ("3", 64, 0), ("4", 0, 7)],
        resumed=["4"],
    )

    batch = batch_of(scheduled, numbers_of_names)

    assert batch[:4] == (89, 3, 1, 200)


def test_an_empty_step_has_a_batch_too():
    assert batch_of(step({}), numbers_of_names)[:4] == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "other",
    [
        step({"2": 1, "1": 1}, cached=[("1", 10, 1), ("2", 20, 1)]),  # in another order
        step({"1": 1, "3": 1}, cached=[("1", 10, 1), ("3", 20, 1)]),  # another request
        step({"1": 1, "2": 1}, cached=[("1", 20, 1), ("2", 10, 1)]),  # as many in all, but of others
    ],
)
def test_the_digest_tells_batches_of_like_sums_apart(other):
    one = batch_of(step({"1": 1, "2": 1}, cached=[("1", 10, 1), ("2", 20, 1)]), numbers_of_names)

    assert one[:4] == batch_of(other, numbers_of_names)[:4]
    assert one.digest != batch_of(other, numbers_of_names).digest
