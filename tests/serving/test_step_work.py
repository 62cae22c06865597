"""The sums over a recorded step's requests, beside counting every query and key; and nothing on steps not recorded."""

import random
import time
from dataclasses import replace

import pytest

from taxbreak_vllm.model.shape import AttentionShape, MatrixShape, ModelShape, UnpackedWork, WindowWork
from taxbreak_vllm.model.step import GraphMode, StepInfo
from taxbreak_vllm.serving import recordings
from taxbreak_vllm.serving.step_work import work_of

WINDOW = 5


def model_of(*windows, graph_sizes=()):
    layers = [
        AttentionShape(layers=1, heads=1, kv_heads=1, head_size=1, head_size_v=1, window=window) for window in windows
    ]
    matrices = MatrixShape(weights=1, bytes=2)
    return ModelShape(
        dtype="bf16",
        product_dtype="bf16",
        linear=matrices,
        lm_head=matrices,
        attention=tuple(layers),
        graph_sizes=graph_sizes,
    )


@pytest.fixture
def step_of(schedule):
    """A step of new requests and of cached ones, each with its tokens of this step and those computed before."""

    def step_of(new=(), cached=(), **more):
        ids = [f"r{number}" for number in range(len(new) + len(cached))]
        tokens = {req_id: q for req_id, (q, _) in zip(ids, [*new, *cached], strict=True)}
        first = [(req_id, q + before, before) for req_id, (q, before) in zip(ids, new, strict=False)]
        step = schedule(tokens, new=first, cached=[(req_id, 1) for req_id in ids[len(new) :]], **more)
        step.scheduled_cached_reqs.num_computed_tokens = [before for _, before in cached]
        return step

    return step_of


def counted(requests, window):
    """Count keys and pairs one by one."""
    keys, pairs = 0, 0
    for q, before in requests:
        seen = [range(max(0, at - window + 1), at + 1) for at in range(before, before + q)]
        pairs += sum(map(len, seen))
        keys += len(set().union(*seen))
    return keys, pairs


@pytest.mark.parametrize("seed", range(20))
def test_sums_are_those_of_counting_every_query_and_key(step_of, seed):
    draw = random.Random(seed)
    new = [(draw.randint(1, 12), draw.choice([0, 0, 7])) for _ in range(draw.randint(0, 3))]
    cached = [(draw.choice([1, 1, 4]), draw.randint(1, 30)) for _ in range(draw.randint(1, 3))]

    work = work_of(step_of(new, cached), model_of(WINDOW), GraphMode.NONE)

    assert work.queries == sum(q for q, _ in [*new, *cached])
    assert (work.keys, work.pairs) == counted([*new, *cached], 10**6)
    keys, pairs = counted([*new, *cached], WINDOW)
    assert work.windows == (WindowWork(window=WINDOW, keys=keys, pairs=pairs),)
    assert work.distinct_experts is None


@pytest.mark.parametrize("absorbed", [1, 4])
def test_requests_with_more_queries_than_are_absorbed_are_summed_up_apart(step_of, absorbed):
    requests = [(97, 0), (5, 10), (4, 20), (1, 30)]
    latent = replace(model_of(None).attention[0], latent=2, absorbed_queries=absorbed)
    work = work_of(step_of(cached=requests), replace(model_of(), attention=(latent,)), GraphMode.NONE)
    unpacked = [(q, before) for q, before in requests if q > absorbed]
    assert work.unpacked == UnpackedWork(
        queries=sum(q for q, _ in unpacked),
        context=sum(before for _, before in unpacked),
        pairs=counted(unpacked, 10**6)[1],
    )


def test_a_model_whose_attention_is_never_unpacked_has_no_such_sums(step_of):
    assert work_of(step_of(cached=[(97, 0)]), model_of(None), GraphMode.NONE).unpacked is None


def test_each_request_has_one_row_of_logits_and_one_more_for_each_draft(step_of):
    assert work_of(step_of(cached=[(4, 10), (1, 10)], drafts={"r0": 3}), None, GraphMode.NONE).logits_rows == 5


@pytest.mark.parametrize(
    ("mode", "padded"), [(GraphMode.FULL, 8), (GraphMode.PIECEWISE, 8), (GraphMode.NONE, 5), (GraphMode.UNKNOWN, 5)]
)
def test_a_step_under_graphs_is_padded_to_the_next_size(step_of, mode, padded):
    step = step_of(cached=[(1, 10)] * 5)
    assert work_of(step, model_of(graph_sizes=(1, 2, 4, 8)), mode).padded_tokens == padded


def test_an_output_that_does_not_tell_its_computed_tokens_gives_no_work(step_of):
    step = step_of(cached=[(1, 10)])
    del step.scheduled_cached_reqs.num_computed_tokens
    assert work_of(step, None, GraphMode.NONE) is None


def test_a_step_without_its_sums_is_still_read(tmp_path):
    import msgspec

    old = msgspec.to_builtins(
        StepInfo(
            step_id="s",
            step_index=1,
            server={"server_id": "s"},
            phase="decode",
            batch={},
            graph_mode="none",
            started_unix_ns=1,
            window_ns=1,
        )
    )
    del old["work"]
    assert msgspec.convert(old, StepInfo).work is None


def test_only_recorded_steps_are_summed_up(open_watch, schedule, monkeypatch):
    asked = []
    monkeypatch.setattr(recordings, "work_of", lambda *step: asked.append(step))
    watch = open_watch(sample_every=4)
    num_recorded = 0
    for _ in range(12):
        watch.begin(object(), schedule({"a": 1}, cached=[("a", 1)]))
        num_recorded += watch.is_recording
        watch.end(None, has_sampled=False)
    assert 0 < num_recorded < 12
    assert len(asked) == num_recorded


def test_a_step_of_256_requests_is_summed_up_within_a_moment(step_of):
    step, model = step_of(cached=[(1, number) for number in range(256)]), model_of(WINDOW)
    took_ns = []
    for _ in range(20):
        started_ns = time.perf_counter_ns()
        work_of(step, model, GraphMode.NONE)
        took_ns.append(time.perf_counter_ns() - started_ns)
    assert min(took_ns) < 1_000_000  # 0.1 ms on a quiet machine
