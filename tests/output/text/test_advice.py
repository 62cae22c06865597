"""Advice as text: each sentence is a line, and what is to be copied is on a line of its own."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.insight.fusion import fusion
from taxbreak_vllm.model.advice import Per, Win
from taxbreak_vllm.output.text.advice import advice_lines
from taxbreak_vllm.output.text.headline import remedy_sentence
from taxbreak_vllm.output.text.wrap import wrapped

SERVING = Path(__file__).parents[2] / "data" / "serving.json"


@pytest.mark.parametrize("width", [60, 80])
def test_a_setting_of_json_is_the_same_where_it_is_copied_from_several_lines(width):
    report = advise([analyze(SERVING)], fusion=fusion(SERVING))
    (setting,) = {one for card in report.conditional for one in card.settings if "pass_config" in one}

    (text,) = [text for text in advice_lines(report) if "pass_config" in text]
    lines = list(wrapped(text, width))

    option, value = shlex.split("\n".join(lines).replace("set: ", ""))
    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    assert [option, json.loads(value)] == [shlex.split(setting)[0], json.loads(shlex.split(setting)[1])]


def test_a_card_says_its_bound_its_evidence_and_the_phases_it_is_made_of():
    breakdown = analyze(SERVING)

    text = " ".join(
        " ".join(advice_lines(advise([with_plain_step(breakdown, 300_000)], fusion=fusion(SERVING)))).split()
    )

    assert "serving time (recorded steps): decode 66%, prefill 34%" in text
    assert "of a step of 300.0 µs" in text
    assert "it stands on 4 recorded steps, too few for an interval" in text
    assert "prefill: at most 12% of it, which is 34% of the serving time; 1 recorded" in text
    assert "tokens: at most" in text


def test_what_to_try_first_is_said_in_one_sentence_with_where_it_saves():
    report = advise([with_plain_step(analyze(SERVING), 300_000)], fusion=fusion(SERVING))

    assert remedy_sentence(report) == (
        "To try first: --max-num-batched-tokens (larger), which saves at most 6.1 µs of a token (32.8%), in prefill"
        " (33.8% of the serving time)."
    )


def test_a_card_says_what_is_predicted_beside_its_bound_or_why_nothing_is():
    report = advise([with_plain_step(analyze(SERVING), 300_000)], fusion=fusion(SERVING))
    win = Win(
        win_ns=620_000, low_ns=510_000, high_ns=700_000, win_ratio=0.31, low_ratio=0.255, high_ratio=0.35,
        change="--graph full", num_steps=9,
    )  # fmt: skip
    first = replace(report.advice[0], per=Per.STEP, at_most_ns=900_000, at_most_ratio=0.45)
    silent, told = (
        replace(report, advice=(one,))
        for one in (replace(first, predicted=None, unpredicted="a gate"), replace(first, predicted=win))
    )

    said = [line.strip() for line in advice_lines(told)]

    assert any(line.startswith("wins about 620.0 µs [510.0 µs, 700.0 µs], at most 900.0 µs of a step") for line in said)
    assert "predicted: 31.0%, from 9 recorded steps replayed with --graph full" in said
    assert "which saves about 620.0 µs, at most 900.0 µs of a step (45.0%)" in remedy_sentence(told)
    assert "   no prediction: a gate" in advice_lines(silent)
    assert "saves at most" in remedy_sentence(silent)


def test_without_advice_there_is_nothing_to_try():
    report = advise([analyze(SERVING)], fusion=fusion(SERVING))

    assert report.conditional
    assert not remedy_sentence(report)
