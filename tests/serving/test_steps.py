import pytest

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.serving.sampling.kinds import StepKinds
from taxbreak_vllm.serving.steps import GraphModes, Work, classify, is_real, num_sampled


def test_new_prompts_are_a_prefill(schedule):
    step = schedule({"a": 5, "b": 7}, new=[("a", 5, 0), ("b", 7, 0)])

    assert classify(step) == Work(Phase.PREFILL, 12, 2, prompt_tokens=12)


def test_so_is_a_chunk_that_leaves_some_of_a_new_prompt(schedule):
    step = schedule({"a": 8}, new=[("a", 20, 0)])

    assert classify(step) == Work(Phase.PREFILL, 8, 1, prompt_tokens=8)


def test_a_cached_request_without_output_goes_on_with_its_prompt(schedule):
    step = schedule({"a": 8}, cached=[("a", 0)])

    assert classify(step) == Work(Phase.PREFILL, 8, 1, prompt_tokens=8)


def test_even_its_last_single_token_is_prefill(schedule):
    assert classify(schedule({"a": 1}, cached=[("a", 0)])).phase is Phase.PREFILL


def test_cached_requests_with_output_decode(decode):
    assert classify(decode) == Work(Phase.DECODE, 2, 2, prompt_tokens=0)


def test_a_chunk_beside_a_decode_is_mixed(schedule):
    step = schedule({"a": 1, "b": 30}, cached=[("a", 3)], new=[("b", 30, 0)])

    assert classify(step) == Work(Phase.MIXED, 31, 2, prompt_tokens=30)


def test_a_resumed_request_is_prefill_though_it_has_output(schedule):
    step = schedule({"a": 40, "b": 1}, cached=[("a", 12), ("b", 4)], resumed=["a"])

    assert classify(step) == Work(Phase.MIXED, 41, 2, prompt_tokens=40)


def test_and_so_it_is_some_chunks_later(schedule):
    assert classify(schedule({"a": 40}, cached=[("a", 12)])).phase is Phase.PREFILL


def test_a_new_request_with_one_token_left_after_a_prefix_hit_decodes(schedule):
    step = schedule({"a": 1, "b": 1}, new=[("a", 33, 32)], cached=[("b", 4)])

    assert classify(step) == Work(Phase.DECODE, 2, 2, prompt_tokens=0)


def test_drafts_behind_that_one_token_make_it_a_verify(schedule):
    step = schedule({"a": 4}, new=[("a", 33, 32)], drafts={"a": 3})

    assert classify(step) == Work(Phase.VERIFY, 4, 1, prompt_tokens=0, draft_tokens=3)


def test_a_prompt_of_one_token_is_a_prefill(schedule):
    assert classify(schedule({"a": 1}, new=[("a", 1, 0)])).phase is Phase.PREFILL


def test_a_prompt_given_as_embeddings_has_a_length_not_told_and_its_last_token_may_be_any(schedule):
    assert classify(schedule({"a": 1}, new=[("a", None, 8)])) == Work(Phase.PREFILL, 1, 1, 1)


def test_the_v2_runner_appends_the_output_so_far_to_a_resumed_prompt(schedule):
    step = schedule({"a": 1}, new=[("a", 10, 9)])
    assert classify(step).phase is Phase.DECODE

    step.scheduled_new_reqs[0].prefill_token_ids = [7] * 25

    assert classify(step).phase is Phase.PREFILL


def test_drafts_being_checked_are_a_verify(schedule):
    step = schedule({"a": 4, "b": 1}, cached=[("a", 3), ("b", 3)], drafts={"a": 3})

    assert classify(step) == Work(Phase.VERIFY, 5, 2, prompt_tokens=0, draft_tokens=3)


def test_drafts_beside_a_prompt_are_mixed(schedule):
    step = schedule({"a": 4, "b": 20}, cached=[("a", 3)], new=[("b", 20, 0)], drafts={"a": 3})

    assert classify(step) == Work(Phase.MIXED, 24, 2, prompt_tokens=20, draft_tokens=3)


def test_encoder_inputs_make_a_step_an_encode(schedule):
    step = schedule({"a": 20, "b": 1}, new=[("a", 20, 0)], cached=[("b", 2)], encoder={"a": [0]})

    assert classify(step) == Work(Phase.ENCODE, 21, 2, prompt_tokens=20)


def test_a_step_without_tokens_is_idle(schedule):
    assert classify(schedule({})) == Work(Phase.IDLE, 0)


def test_warm_up_and_empty_steps_serve_nobody(schedule, decode):
    assert is_real(decode)
    assert not is_real(schedule({}))
    assert not is_real(schedule({"_warmup_0_": 16}, new=[("_warmup_0_", 16, 0)]))


class _Mode:
    """Stands for vLLM's CUDAGraphMode."""

    def __init__(self, name, decode=None, mixed=None):
        self.name = name
        self.decode_mode = lambda: decode or self
        self.mixed_mode = lambda: mixed or self


class _CompilationConfig:
    def __init__(self, mode, size):
        self.cudagraph_mode = mode
        self.max_cudagraph_capture_size = size


FULL, PIECEWISE, NONE = _Mode("FULL"), _Mode("PIECEWISE"), _Mode("NONE")


@pytest.mark.parametrize(
    ("mode", "phase", "num_tokens", "expected"),
    [
        (_Mode("FULL_AND_PIECEWISE", FULL, PIECEWISE), Phase.DECODE, 8, "full"),
        (_Mode("FULL_AND_PIECEWISE", FULL, PIECEWISE), Phase.VERIFY, 8, "full"),
        (_Mode("FULL_AND_PIECEWISE", FULL, PIECEWISE), Phase.MIXED, 8, "piecewise"),
        (_Mode("FULL_AND_PIECEWISE", FULL, PIECEWISE), Phase.PREFILL, 513, "none"),
        (_Mode("FULL_AND_PIECEWISE", FULL, PIECEWISE), Phase.IDLE, 0, "none"),
        (_Mode("FULL_DECODE_ONLY", FULL, NONE), Phase.PREFILL, 8, "none"),
        (FULL, Phase.PREFILL, 512, "full"),
        (NONE, Phase.DECODE, 1, "none"),
    ],
)
def test_the_graph_mode_is_what_the_dispatcher_picks(mode, phase, num_tokens, expected):
    modes = GraphModes.from_config(_CompilationConfig(mode, 512))

    assert modes.of(phase, num_tokens) == expected
    assert modes.has_graphs == (mode is not NONE)


def test_a_configuration_that_cannot_be_read_has_unknown_modes():
    assert GraphModes.from_config(object()).of(Phase.DECODE, 1) == "unknown"


def test_each_request_that_generates_and_each_prompt_that_begins_samples_a_token(schedule):
    step = schedule({"a": 1, "b": 8, "c": 8, "d": 8}, new=[("c", 8, 0), ("d", 20, 0)], cached=[("a", 3), ("b", 0)])

    assert num_sampled(step) == 3  # a, c, d; what ends the prompt of b was counted when that began


def test_a_server_s_tokens_are_counted_over_all_its_steps(schedule):
    kinds = StepKinds(GraphModes.from_config(None))
    steps = [
        schedule({"a": 8}, new=[("a", 20, 0)]),
        schedule({"a": 12}, cached=[("a", 0)]),
        schedule({"a": 1, "b": 5}, cached=[("a", 1)], new=[("b", 5, 0)]),
        *[schedule({"a": 1, "b": 1}, cached=[("a", 2), ("b", 1)])] * 3,
    ]
    for step in steps:
        kinds.of_step(step)

    assert kinds.num_sampled() == 1 + 0 + 2 + 3 * 2


def test_with_drafts_the_tokens_are_not_known(schedule):
    kinds = StepKinds(GraphModes.from_config(None))
    kinds.of_step(schedule({"a": 4}, cached=[("a", 1)], drafts={"a": 3}))

    assert kinds.num_sampled() is None
