"""Advice as cards: with an if where it hangs on the plain step, and closed where a change was made."""

from dataclasses import replace

import pytest

from taxbreak_vllm.model.advice import Advice, AdviceReport, Component, Held, Outcome, Per, Serving, Verdict, Win
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.page.advice import advice_view

GRAPHS = Advice(
    rule="cuda-graphs", component=Component.LAUNCH_PATH, phase=Phase.DECODE, finding="", change="turn graphs on",
    settings=("no --enforce-eager",), at_most_ns=10**6, at_most_ratio=0.25, refuted_by="", num_steps=9,
    interval=(0.2, 0.25),
)  # fmt: skip
OUTCOME = Outcome(
    held=Held.HELD, rules=("cuda-graphs",), settings={"enforce_eager": ("True", "False")}, per=Per.STEP,
    phase=Phase.DECODE, change=0.8, interval=(0.7, 0.9), promised_ratio=0.25, num_before=9, num_after=9,
    words="enforce_eager True → False: 0.80×",
)  # fmt: skip


@pytest.mark.parametrize(
    ("report", "title"),
    [
        (AdviceReport(verdict=Verdict.ACT, advice=(GRAPHS,)), "1 change worth trying"),
        (
            AdviceReport(verdict=Verdict.CONDITIONAL, conditional=(GRAPHS, GRAPHS)),
            "2 changes worth trying, if the plain step is long enough",
        ),
        (AdviceReport(verdict=Verdict.CONDITIONAL), "It hangs on how long the plain step is"),
        (AdviceReport(verdict=Verdict.NO_ACTION), "No action"),
        (AdviceReport(verdict=Verdict.WITHHELD), "No advice yet"),
    ],
)
def test_the_title_is_the_verdict(report, title):
    assert advice_view(report).title == title


@pytest.mark.parametrize(
    ("above_ns", "condition"),
    [(None, ""), (3_000_000, "If the plain step is above 3.00 ms"), (0, "However long the plain step is")],
)
def test_what_hangs_on_the_plain_step_says_so(above_ns, condition):
    report = AdviceReport(
        verdict=Verdict.CONDITIONAL, conditional=(replace(GRAPHS, if_plain_above_ns=above_ns),), settled_by="time them"
    )

    view = advice_view(report)

    assert ([card.condition for card in view.conditional], view.settled_by) == ([condition], "time them")


def test_a_card_says_its_bound_its_evidence_and_its_tokens():
    serving = Serving(phases=(), is_timed=True, step_ns=4_000_000, tokens_per_s=300.0)
    advice = replace(GRAPHS, tokens_per_s_at_most=400.0, at_most_ns_per_token=833_000)

    (card,) = advice_view(AdviceReport(verdict=Verdict.ACT, advice=(advice,), serving=serving)).cards

    assert (
        card.win == "Wins at most 1.00 ms of a step of 4.00 ms (25.0%); 20.0% to 25.0% with 95 %, from 9 recorded steps"
    )
    assert card.tokens == "Tokens: at most 400 a second (300 now), 833.0 µs less for each"


def test_a_card_says_what_is_predicted_and_another_why_nothing_is():
    win = Win(
        win_ns=620_000, low_ns=510_000, high_ns=700_000, win_ratio=0.155, low_ratio=0.13, high_ratio=0.175,
        change="--graph full", num_steps=9,
    )  # fmt: skip
    report = AdviceReport(
        verdict=Verdict.ACT, advice=(replace(GRAPHS, predicted=win), replace(GRAPHS, unpredicted="a gate"))
    )

    told, silent = advice_view(report).cards

    assert told.win.startswith("Wins about 620.0 µs [510.0 µs, 700.0 µs], at most 1.00 ms of a step (25.0%)")
    assert told.prediction == "Predicted: 15.5%, from 9 recorded steps replayed with --graph full"
    assert (silent.win[:12], silent.prediction) == ("Wins at most", "No prediction: a gate")


@pytest.mark.parametrize(
    ("held", "words"),
    [(Held.HELD, "It held"), (Held.DID_NOT_HOLD, "It did not hold"), (Held.NOT_ENOUGH_YET, "Not known yet")],
)
def test_a_change_that_was_made_is_a_closed_card_and_one_that_is_advised_again_says_so(held, words):
    report = AdviceReport(verdict=Verdict.ACT, advice=(GRAPHS,), outcomes=(replace(OUTCOME, held=held),))

    view = advice_view(report)

    assert [(one.title, one.words) for one in view.closed] == [(f"{words}: cuda-graphs", OUTCOME.words)]
    assert view.cards[0].tried == f"changed before: {words.lower()}"


def test_a_change_that_nobody_advised_is_closed_too():
    report = AdviceReport(verdict=Verdict.NO_ACTION, outcomes=(replace(OUTCOME, rules=()),))

    assert advice_view(report).closed[0].title == "It held: a change nobody advised"
