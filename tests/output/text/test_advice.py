"""Advice as text: a line fits 80 columns, and what is to be copied is on a line of its own."""

from pathlib import Path

from taxbreak_vllm import analyze
from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.insight.fusion import fusion
from taxbreak_vllm.output.text.advice import advice_lines

SERVING = Path(__file__).parents[2] / "data" / "serving.json"


def test_lines_fit_80_columns_but_for_settings(trace_path):
    breakdown = analyze(trace_path)
    plain_ns = round(0.9 * breakdown.steps[0].device.window_ns)

    for report in (advise([breakdown]), advise([with_plain_step(breakdown, plain_ns)])):
        settings = {setting for one in (*report.advice, *report.conditional) for setting in one.settings}
        long = [line for line in advice_lines(report) if len(line) > 80]
        assert [
            line for line in long if line.split(maxsplit=1)[-1] not in settings and line.strip() not in settings
        ] == []


def test_a_setting_is_never_broken():
    report = advise([analyze(SERVING)])

    lines = list(advice_lines(report))

    assert all(any(line.endswith(setting) for line in lines) for one in report.conditional for setting in one.settings)


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
