"""After a restart with other settings it is said whether the change held, with what was measured and how surely."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from taxbreak_vllm.insight import device_rules, rules, server_advice
from taxbreak_vllm.insight.held import ASKED, MIN_STEPS, PlainStep, Run, median_interval, outcomes
from taxbreak_vllm.insight.server_evidence import ServerEvidence
from taxbreak_vllm.model.advice import Advice, Component, Held, Per, PhaseAdvice
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.step import Phase, Server
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.serving import server_settings

EAGER, GRAPHS = {"cudagraph_mode": "NONE", "max_num_seqs": "2"}, {"cudagraph_mode": "FULL", "max_num_seqs": "2"}


def card(rule, *, per=Per.STEP, at_most=0.5, phase=Phase.DECODE):
    part = PhaseAdvice(phase=phase, finding="", num_steps=9, at_most_ns=1, at_most_ratio=at_most, serving_ratio=1.0)
    return Advice(
        rule=rule, component=Component.FRAMEWORK, phase=phase, finding="", change="", settings=(), at_most_ns=1,
        at_most_ratio=at_most, refuted_by="", per=per, phases=(part,),
    )  # fmt: skip


def run(settings, ms, *, num=20, tokens=2, phase=Phase.DECODE):
    noise = random.Random(ms)
    return Run(
        settings,
        {phase: [PlainStep(round(1e6 * ms * noise.uniform(0.95, 1.05)), tokens, 3 * tokens) for _ in range(num)]},
    )


@pytest.mark.parametrize(
    ("ms", "held"), [(5.0, Held.HELD), (10.0, Held.DID_NOT_HOLD), (12.0, Held.DID_NOT_HOLD), (9.3, Held.HELD)]
)
def test_a_change_held_if_steps_are_surely_shorter_and_did_not_if_they_surely_are_not(ms, held):
    (outcome,) = outcomes([card("cuda-graphs")], run(EAGER, 10.0, num=60), run(GRAPHS, ms, num=60))

    assert (outcome.held, outcome.rules, outcome.phase) == (held, ("cuda-graphs",), Phase.DECODE)
    assert outcome.change == pytest.approx(ms / 10, rel=0.05)
    assert outcome.interval[0] <= outcome.change <= outcome.interval[1]
    assert outcome.settings == {"cudagraph_mode": ("NONE", "FULL")}
    assert "cudagraph_mode NONE → FULL: decode steps take" in outcome.words


@pytest.mark.parametrize(("before", "after"), [(6, 60), (60, 6), (60, 0)])
def test_few_steps_on_either_side_are_not_enough_yet(before, after):
    (outcome,) = outcomes([card("cuda-graphs")], run(EAGER, 10.0, num=before), run(GRAPHS, 1.0, num=after))

    assert (outcome.held, outcome.interval) == (Held.NOT_ENOUGH_YET, None)


def test_what_is_said_tells_how_many_steps_of_which_size_it_is_from_or_how_many_it_takes():
    words = [outcomes([card("cuda-graphs")], run(EAGER, 10.0), run(GRAPHS, 5.0, num=num))[0].words for num in (3, 9)]

    assert "(7 on each side tell how surely), from 20 and 3 steps of 8 to 15 tokens; the bound" in words[0]
    assert re.search(r"take 0\.5\d× the time they took \(0\.\d\d to 0\.\d\d with 95 %\), from 20 and 9 steps", words[1])


def waiting_for_a_cpu(found, ratio):
    worker = WorkerState(
        server=Server(server_id="vllm-a", model_name="tiny", device_type="cuda"),
        started_unix_ns=0, updated_unix_ns=0, enabled=True, runqueue_wait_ratio=ratio,
    )  # fmt: skip
    return replace(found, around=[ServerEvidence(engine=EngineState(engine="0"), workers=[worker])])


@pytest.mark.parametrize(
    ("ms", "waits", "held"),
    [
        (16.0, (0.1, 0.5), Held.NOT_ENOUGH_YET),  # neighbours came
        (6.0, (0.5, 0.1), Held.NOT_ENOUGH_YET),  # neighbours went
        (5.0, (0.5, 0.6), Held.HELD),
        (16.0, (0.02, 0.05), Held.DID_NOT_HOLD),
    ],
)
def test_what_waits_for_a_cpu_may_explain_is_no_verdict(ms, waits, held):
    before, after = (
        waiting_for_a_cpu(found, ratio) for found, ratio in zip((run(EAGER, 10.0), run(GRAPHS, ms)), waits, strict=True)
    )

    (outcome,) = outcomes([card("cuda-graphs")], before, after)

    assert outcome.held == held
    told = f"a worker waited for a CPU {waits[0]:.0%} of the time before and {waits[1]:.0%} after"
    assert (told in outcome.words) == (max(waits) >= 0.1)


def test_steps_of_other_batches_are_not_compared():
    (outcome,) = outcomes([card("cuda-graphs")], run(EAGER, 10.0, tokens=2), run(GRAPHS, 5.0, tokens=64))

    assert (outcome.held, outcome.change, outcome.num_before) == (Held.NOT_ENOUGH_YET, None, 0)
    assert "nothing comparable was recorded on both sides" in outcome.words


def test_a_change_that_lets_steps_carry_more_is_judged_by_what_a_token_takes():
    more = {"cudagraph_mode": "NONE", "max_num_seqs": "8"}
    advice = card("batch-size", per=Per.TOKEN, at_most=0.875)

    (outcome,) = outcomes([advice], run(EAGER, 10.0, tokens=2), run(more, 12.7, tokens=8))

    assert (outcome.held, outcome.per) == (Held.HELD, Per.TOKEN)
    assert 1 / outcome.change == pytest.approx(3.15, rel=0.05)
    assert outcome.promised_ratio == 0.875


def test_more_prompt_tokens_in_a_step_are_judged_by_what_one_of_them_takes():
    before, after = (run({"max_num_batched_tokens": num}, 10.0, tokens=int(num)) for num in ("64", "128"))

    (outcome,) = outcomes([card("prefill-budget", per=Per.TOKEN)], before, after)

    assert (outcome.held, outcome.per) == (Held.HELD, Per.TOKEN)
    assert "decode prompt tokens take 0.5" in outcome.words


def test_the_same_settings_are_no_change_and_one_that_nobody_advised_is_measured_too():
    (outcome,) = outcomes([card("batch-size")], run(EAGER, 10.0), run(GRAPHS, 5.0))

    assert outcomes([card("cuda-graphs")], run(EAGER, 10.0), run(EAGER, 5.0)) == ()
    assert (outcome.held, outcome.rules, outcome.promised_ratio) == (Held.HELD, (), None)


def test_the_interval_of_a_median_takes_seven_values_and_holds_it_as_often_as_it_says():
    source = random.Random(1)
    draws = [median_interval([source.lognormvariate(0, 1) for _ in range(15)]) for _ in range(2000)]

    assert median_interval([1.0] * (MIN_STEPS - 1)) is None
    assert median_interval(list(range(MIN_STEPS))) == (0, MIN_STEPS - 1)
    assert sum(low <= 1 <= high for low, high in draws) / len(draws) >= 0.975


def test_every_rule_named_here_exists():
    text = "".join(Path(module.__file__).read_text() for module in (rules, device_rules, server_advice))

    assert [rule for rule in ASKED if f'"{rule}"' not in text] == []


def test_every_setting_named_here_is_one_that_a_server_tells():
    told = Path(server_settings.__file__).read_text()

    names = {name for names in ASKED.values() for name in names}

    assert [name for name in sorted(names) if f'"{name}"' not in told] == []
