"""Of a change around a server's steps it is said whether the part that it is about fell, whatever the steps did."""

import pytest

from taxbreak_vllm.insight.held import ASKED, Run, outcomes
from taxbreak_vllm.insight.server_evidence import PARTS, ServerEvidence
from taxbreak_vllm.model.advice import Advice, Component, Held, Per
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState
from taxbreak_vllm.model.frontend import FrontendState, SpanHistogram, Stage

MS = 1_000_000


def card(rule, per):
    return Advice(
        rule=rule, component=Component.IPC, phase=None, finding="", change="", settings=(), at_most_ns=1,
        at_most_ratio=0.2, refuted_by="", per=per,
    )  # fmt: skip


def iterations(parts_ms, *, num=1000):
    spent = {label: round(ms * MS) * num for label, ms in parts_ms.items()}
    return ServerEvidence(
        engine=EngineState(
            engine="0",
            num_iterations=num,
            iterations_ns=2 * MS * num + sum(spent.values()),
            exposed_ns={label: ns for label, ns in spent.items() if isinstance(label, EnginePart)},
            between_ns={label: ns for label, ns in spent.items() if isinstance(label, Between)},
        )
    )


def requests(render_ms, *, num=100):
    spans = SpanHistogram(num=num, sum_ns=round(render_ms * MS) * num)
    whole = SpanHistogram(num=num, sum_ns=round((100 + render_ms) * MS) * num)
    return ServerEvidence(
        engine=EngineState(engine="0"), frontends=[FrontendState(stages={Stage.RENDER: spans}, total=whole)]
    )


def outcome_of(rule, per, settings, before, after):
    old, new = ({name: value[place] for name, value in settings.items()} for place in (0, 1))
    (outcome,) = outcomes([card(rule, per)], Run(old, {}, [before]), Run(new, {}, [after]))
    return outcome


@pytest.mark.parametrize(
    ("after_ms", "held"),
    [(0.0, Held.HELD), (0.2, Held.HELD), (0.3, Held.DID_NOT_HOLD), (0.9, Held.DID_NOT_HOLD)],
)
def test_it_held_if_its_part_fell_by_what_is_worth_a_restart_or_by_half(after_ms, held):
    before, after = (iterations({Between.IPC_RETURN: ms}) for ms in (0.5, after_ms))

    outcome = outcome_of("one-process", Per.ITERATION, {"distributed_executor_backend": ("mp", "uni")}, before, after)

    assert (outcome.held, outcome.rules, outcome.per) == (held, ("one-process",), Per.ITERATION)
    assert outcome.change == pytest.approx(after_ms / 0.5)
    assert (outcome.num_before, outcome.num_after) == (1000, 1000)


def test_a_request_s_part_is_that_of_all_requests():
    outcome = outcome_of(
        "before-the-engine", Per.REQUEST, {"api_server_count": ("1", "2")}, requests(40.0), requests(10.0)
    )

    assert (outcome.held, outcome.change) == (Held.HELD, pytest.approx(0.25))
    assert outcome.words == (
        "api_server_count 1 → 2: of each request what the advice is about takes 10 of 110 ms; it took 40 of 140 ms"
        " (100 and 100 requests); the bound was 20% less"
    )


@pytest.mark.parametrize(("before", "after"), [(19, 100), (100, 19)])
def test_few_requests_on_either_side_are_not_enough_yet(before, after):
    outcome = outcome_of(
        "queue", Per.REQUEST, {"max_num_seqs": ("2", "8")}, requests(9.0, num=before), requests(1.0, num=after)
    )

    assert (outcome.held, outcome.change) == (Held.NOT_ENOUGH_YET, None)


def test_a_part_that_was_not_there_before_did_not_fall():
    before, after = iterations({}), iterations({Between.IPC_RETURN: 0.5})

    outcome = outcome_of("one-process", Per.ITERATION, {"distributed_executor_backend": ("mp", "uni")}, before, after)

    assert (outcome.held, outcome.change) == (Held.DID_NOT_HOLD, None)


def test_every_rule_about_a_part_is_asked_for_by_a_setting():
    assert PARTS.keys() - ASKED.keys() == set()
