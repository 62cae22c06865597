"""Advice as text: each sentence is a line, and what is to be copied is on a line of its own."""

import json
import shlex
from pathlib import Path

import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.insight.fusion import fusion
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


def test_without_advice_there_is_nothing_to_try():
    report = advise([analyze(SERVING)], fusion=fusion(SERVING))

    assert report.conditional
    assert not remedy_sentence(report)
