"""The distinct experts of a recorded step, from routers of vLLM's own source; and none of it on other steps."""

import random
from types import SimpleNamespace

import pytest

from taxbreak_vllm.model.shape import ExpertShape, MatrixShape, ModelShape
from taxbreak_vllm.serving.chosen_experts import ChosenExperts, why_uncounted
from taxbreak_vllm.spool.spool import Spool

torch = pytest.importorskip("torch")

BASE_ROUTER = "model_executor/layers/fused_moe/router/base_router.py"
EXPERTS = ExpertShape(layers=2, experts=8, local_experts=8, top_k=2, weights=1, bytes=2)
MODEL = ModelShape(dtype="bf16", product_dtype="bf16", linear=MatrixShape(), lm_head=MatrixShape(), experts=(EXPERTS,))


@pytest.fixture(scope="module")
def router_of(vllm_source):
    """Build a router whose own choice is given, and which hands it over as vLLM's do."""
    names = ("set_capture_fn", "_select_experts", "_convert_indices_dtype")

    class Router:
        capture_fn = None

        def _validate_eplb_state(self):
            pass

        def _compute_routing(self, hidden_states, router_logits, indices_type, *, input_ids=None):
            return None, hidden_states

        def _apply_eplb_mapping(self, topk_ids):
            return topk_ids

    for name in names:
        setattr(Router, name, vllm_source.load_method(BASE_ROUTER, "BaseRouter", name))
    return Router


@pytest.fixture
def routers(router_of):
    return [router_of() for _ in range(EXPERTS.layers)]


def worker_of(routers, *, device="cpu", mode=0):
    layers = [SimpleNamespace(), *(SimpleNamespace(router=router) for router in routers)]
    return SimpleNamespace(
        device=SimpleNamespace(type=device),
        vllm_config=SimpleNamespace(compilation_config=SimpleNamespace(mode=mode)),
        model_runner=SimpleNamespace(model=SimpleNamespace(modules=lambda: [*layers, *layers])),
    )


def choose(router, *rows):
    router._select_experts(torch.tensor(rows, dtype=torch.int32), None)


def test_distinct_experts_are_those_of_each_layer_added_up(routers):
    chosen = ChosenExperts(worker_of(routers), EXPERTS, 3)
    choose(routers[0], (0, 1), (1, 2), (0, 2))
    choose(routers[1], (3, 4), (5, 6), (7, 0))
    chosen.release()
    assert chosen.count() == 3 + 6


def test_rows_beyond_the_tokens_of_a_step_are_padding(routers):
    chosen = ChosenExperts(worker_of(routers), EXPERTS, 1)
    for router in routers:
        choose(router, (0, 1), (6, 7))
    assert chosen.count() == 2 + 2


@pytest.mark.parametrize("seed", range(10))
def test_any_choice_lies_between_one_token_s_experts_and_all_that_tokens_can_reach(routers, seed):
    draw = random.Random(seed)
    queries = draw.randint(1, 9)
    chosen = ChosenExperts(worker_of(routers), EXPERTS, queries)
    for router in routers:
        choose(router, *(draw.sample(range(8), 2) for _ in range(queries)))
    assert 2 * EXPERTS.layers <= chosen.count() <= min(8, 2 * queries) * EXPERTS.layers


def test_once_released_a_router_keeps_nothing(routers):
    chosen = ChosenExperts(worker_of(routers), EXPERTS, 1)
    for router in routers:
        choose(router, (0, 1))
    chosen.release()
    for router in routers:
        choose(router, (2, 3))
    assert [router.capture_fn for router in routers] == [None, None]
    assert chosen.count() == 4


@pytest.mark.parametrize(
    "calls",
    [[], [[(0, 1)]], [[(0, 1)], [(0, 1)], [(0, 1)]], [[(3, 3)], [(0, 1)]]],
    ids=["no layer chose", "one layer chose", "a layer chose twice", "a token chose one expert twice"],
)
def test_what_no_step_could_have_chosen_is_not_told(routers, calls):
    chosen = ChosenExperts(worker_of(routers), EXPERTS, 1)
    for number, rows in enumerate(calls):
        choose(routers[number % 2], *rows)
    assert chosen.count() is None


def test_a_router_that_fails_costs_the_count_alone_and_frees_the_others(routers):
    def fail(_):
        raise RuntimeError("planted")

    routers[1].set_capture_fn = fail
    chosen = ChosenExperts(worker_of(routers), EXPERTS, 1)
    assert routers[0].capture_fn is None
    chosen.release()
    assert chosen.count() is None


@pytest.mark.parametrize("worker", [object(), worker_of([])])
def test_a_worker_without_routers_costs_the_count_alone(worker):
    chosen = ChosenExperts(worker, EXPERTS, 1)
    chosen.release()
    assert chosen.count() is None


def test_experts_are_counted_where_nothing_hides_them(routers):
    assert why_uncounted(worker_of(routers), [EXPERTS]) is None


def test_where_something_hides_them_there_is_one_reason(routers):
    other = ExpertShape(layers=2, experts=8, local_experts=4, top_k=2, weights=1, bytes=2)
    assert "on its device alone" in why_uncounted(worker_of(routers, device="cuda"), [EXPERTS])
    assert "compiled" in why_uncounted(worker_of(routers, mode=3), [EXPERTS])
    assert "spread over ranks" in why_uncounted(worker_of(routers), [other])
    assert "several kinds" in why_uncounted(worker_of(routers), [EXPERTS, other])
    assert "do not tell" in why_uncounted(worker_of(routers[:1]), [EXPERTS])
    assert "do not tell" in why_uncounted(SimpleNamespace(device=SimpleNamespace(type="cpu")), [EXPERTS])


def test_a_router_that_another_listens_to_is_left_to_it(routers):
    heard = []
    routers[0].set_capture_fn(heard.append)
    worker = worker_of(routers)
    assert "do not tell" in why_uncounted(worker, [EXPERTS])
    chosen = ChosenExperts(worker, EXPERTS, 1)
    chosen.release()
    choose(routers[0], (0, 1))
    assert len(heard) == 1


def test_only_recorded_steps_are_listened_to(open_watch, schedule, routers, tmp_path):
    watch, worker = open_watch(sample_every=4, model=MODEL), worker_of(routers)
    listened = []
    for number in range(12):
        watch.begin(worker, schedule({"a": 1}, cached=[("a", 1)]))
        listened.append((watch.is_recording, all(router.capture_fn for router in routers)))
        choose(routers[0], (number % 8, (number + 1) % 8))
        choose(routers[1], (0, 1))
        watch.end(None, has_sampled=False)
        watch.outbox.turn(wait_s=0)
        assert [router.capture_fn for router in routers] == [None, None]
    assert {is_recording for is_recording, _ in listened} == {True, False}
    assert all(is_recording == is_listening for is_recording, is_listening in listened)
    spool = Spool(tmp_path / "spool", max_bytes=2**30, max_captures=100)
    found = [capture.read_info().work.distinct_experts for capture in spool.captures()]
    assert found
    assert set(found) == {4}


def test_an_abandoned_recording_lets_go_of_the_routers(open_watch, schedule, routers):
    watch, worker = open_watch(sample_every=2, model=MODEL), worker_of(routers)
    for _ in range(2):
        watch.begin(worker, schedule({"a": 1}, cached=[("a", 1)]))
        if not watch.is_recording:
            watch.end(None, has_sampled=False)
    assert all(router.capture_fn for router in routers)
    watch.abandon()
    assert [router.capture_fn for router in routers] == [None, None]
