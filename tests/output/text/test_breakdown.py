"""Breakdowns as text: the first thing to know first, each figure with its meaning, and what one should know below."""

from dataclasses import replace
from pathlib import Path

from taxbreak_vllm import analyze
from taxbreak_vllm.model.breakdown import IdleTime
from taxbreak_vllm.model.worker import ControlState, WorkerControl
from taxbreak_vllm.output.text.breakdown import balance_table, control_lines, step_table, summary_lines


def test_what_one_should_know_of_a_worker_stands_below_its_line():
    workers = (
        WorkerControl(engine="0", rank=0, enabled=False, off_reason="disabled", notes=("it has not started yet",)),
        WorkerControl(engine="0", rank=1, enabled=True, sample_every=100),
    )

    assert control_lines(ControlState(server_id="a", applied=True, control=None, workers=workers)) == [
        "a: engine 0 rank 0: recording is off (disabled)",
        "  it has not started yet",
        "a: engine 0 rank 1: recording one step in 100 of each kind",
    ]


SERVING = Path(__file__).parents[2] / "data" / "serving.json"


def test_a_trace_begins_with_what_its_device_waits_for():
    _, device, sentence, *_ = summary_lines(analyze(SERVING))

    assert device == "Imagined GPU"
    assert sentence == (
        "The device waits 13.5% of the time for the host, most of that for Python and the dispatch of ops (ΔFT);"
        " it is idle 19.9% in all."
    )


def test_what_the_device_waits_for_is_not_said_where_it_is_not_known():
    breakdown = analyze(SERVING)
    unknown = replace(breakdown.total, device=replace(breakdown.total.device, idle=IdleTime.unknown()))

    assert not any("waits" in line for line in summary_lines(replace(breakdown, total=unknown)))


def test_each_figure_of_the_balance_has_its_meaning_beside_it_and_loses_that_first():
    table = balance_table(analyze(SERVING))

    assert next(line for line in table.lines(80) if "ΔFT" in line and "µs" in line) == (
        "ΔFT      390.0 µs  host work in Python and in dispatching ops"
    )
    assert list(table.lines(20))[-1] == "kernels        52"


def test_of_many_steps_the_first_are_shown_and_how_many_there_are():
    breakdown = analyze(SERVING)
    many = replace(breakdown, steps=breakdown.steps * 11)

    lines = list(step_table(many).lines(80))

    assert lines[0] == "the first 40 steps of 44"
    assert len([line for line in lines if line.startswith("execute")]) == 40
