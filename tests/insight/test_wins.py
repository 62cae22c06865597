"""What a change is predicted to win: merged over recordings, below its bound, by serving time, else a reason."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from taxbreak_vllm.insight import device_rules, rules
from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.foreseen import apart, foreseen
from taxbreak_vllm.insight.joined import joined
from taxbreak_vllm.insight.wins import BEYOND, REMEDIES
from taxbreak_vllm.model.advice import Advice, AdviceReport, Component, Per, Verdict
from taxbreak_vllm.model.breakdown import (
    Breakdown,
    Calibration,
    Coverage,
    DeviceTime,
    ExposedTax,
    FamilyShare,
    IdleTime,
    Source,
    StepBreakdown,
    Taxes,
)
from taxbreak_vllm.model.forecast import Forecast, Remedy
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, StepHistogram
from taxbreak_vllm.taxes.recording import Recording

WINDOW_NS = 1_000_000


def told(ratio, *, wide=0.02, phase=Phase.DECODE, change=Remedy.GRAPH, plain_ns=WINDOW_NS):
    return Forecast(
        change=change, phase=phase, plain_ns=plain_ns, win_ratio=ratio, low_ratio=ratio - wide, high_ratio=ratio + wide
    )


def refused(reason, *, phase=Phase.DECODE, change=Remedy.GRAPH):
    return Forecast(change=change, phase=phase, refused=reason)


def capture(*forecasts, waits=400_000, phase=Phase.DECODE, graph_mode=GraphMode.NONE):
    """A calibrated capture of a step of 1 ms; for 0.4 ms of it the device waits for Python."""
    active = WINDOW_NS - waits
    step = StepBreakdown(
        phase=phase,
        graph_mode=graph_mode,
        batch=Batch(requests=64, prompt_tokens=4096 if phase is Phase.PREFILL else 0, output_tokens=64),
        window_ns=WINDOW_NS,
        device=DeviceTime(
            window_ns=WINDOW_NS, active_ns=active, idle_ns=waits, idle=IdleTime(host_ns=waits, blocked_ns=0)
        ),
        taxes=Taxes(delta_ft_ns=waits, delta_kt_ns=0, orchestration_ns=waits),
        exposed=ExposedTax(delta_ft_ns=waits),
        launches=100,
        kernels=100,
        families={"other": FamilyShare(active_ns=active)},
    )
    return Breakdown(
        source=Source(device_type="cuda", server_id="vllm-a"),
        calibration=Calibration(dilation=1.0, residual=0.0, state="calibrated", plain_ns=WINDOW_NS),
        coverage=Coverage(kernels=100, linked=100, events=200),
        steps=(step,),
        total=step,
        forecasts=forecasts,
    )


def card(report, rule):
    (found,) = [one for one in (*report.advice, *report.conditional) if one.rule == rule]
    return found


def graphs(captures, **told):
    return card(advise(captures, **told), "cuda-graphs")


def test_the_win_is_the_median_of_the_recordings_and_how_they_differ_widens_their_own_interval():
    alike = graphs([capture(told(0.30)) for _ in range(9)]).predicted
    apart = graphs([capture(told(0.30 + 0.01 * n)) for n in range(-4, 5)]).predicted

    assert (alike.win_ns, alike.low_ns, alike.high_ns) == (300_000, 280_000, 320_000)
    assert (alike.win_ratio, alike.num_steps, alike.change) == (0.3, 9, "--graph full")
    assert apart.win_ns == 300_000
    spread_ns = 1.645 * 1.4826 * 20_000 / 3
    assert apart.low_ns == pytest.approx(280_000 - spread_ns, abs=2)
    assert apart.high_ns == pytest.approx(320_000 + spread_ns, abs=2)


def test_the_interval_of_two_recordings_is_all_that_they_reach():
    win = graphs([capture(told(0.2)), capture(told(0.3))]).predicted

    assert (win.win_ns, win.low_ns, win.high_ns) == (250_000, 180_000, 320_000)


def test_a_win_is_of_the_plain_step_not_of_the_longer_one_that_was_recorded():
    recorded = replace(
        capture(told(0.25, plain_ns=800_000)),
        calibration=Calibration(dilation=1.25, residual=0.0, state="calibrated", plain_ns=800_000),
    )

    advice = graphs([recorded] * 7)

    assert advice.predicted.win_ns == 200_000
    assert advice.predicted.win_ratio == pytest.approx(0.25, abs=0.001)


@pytest.mark.parametrize(("ratio", "wide"), [(0.39, 0.05), (0.45, 0.06)])
def test_no_part_of_a_prediction_passes_its_bound(ratio, wide):
    advice = graphs([capture(told(ratio, wide=wide))] * 7)

    win, phase = advice.predicted, advice.phases[0]
    assert win.low_ns <= win.win_ns <= win.high_ns == advice.at_most_ns == 400_000
    assert win.high_ratio == pytest.approx(advice.at_most_ratio)
    assert phase.predicted.high_ns <= phase.at_most_ns


def test_a_prediction_that_lies_above_its_bound_as_a_whole_is_none():
    advice = graphs([capture(told(0.6, wide=0.1))] * 7)

    assert advice.predicted is None
    assert advice.unpredicted == "0.50 ms at least were predicted, above the bound: one of the two is wrong"


def test_where_most_recordings_do_not_tell_the_others_are_not_taken_for_all():
    few = [capture(refused("a gate")), *[capture(told(0.3))] * 3]
    most = [*[capture(refused("a gate"))] * 3, capture(refused("another")), *[capture(told(0.3))] * 3]

    assert graphs(few).predicted.num_steps == 3
    assert (graphs(most).predicted, graphs(most).unpredicted) == (None, "4 of 7 recorded steps do not tell: a gate")
    assert graphs([capture(refused("a gate"))] * 7).unpredicted == "a gate"


def test_results_of_an_older_version_have_bounds_alone():
    old = Breakdown.from_builtins({k: v for k, v in capture().to_builtins().items() if k != "forecasts"})

    advice = graphs([old] * 7)

    assert (advice.predicted, advice.unpredicted) == (None, "no recording of it was replayed")
    assert advice.at_most_ns == 400_000


def test_steps_in_which_there_is_nothing_to_win_win_nothing():
    eager, captured = capture(told(0.3)), capture(waits=0, graph_mode=GraphMode.FULL)

    advice = card(advise([*[eager] * 6, *[captured] * 6]), "capture-sizes")

    assert (advice.at_most_ns, advice.predicted.win_ns, advice.predicted.num_steps) == (200_000, 150_000, 6)


def test_phases_are_weighted_by_their_shares_of_the_serving_time_not_of_the_recordings():
    """Nine of ten recorded steps are prefills, nine tenths of the serving time are decodes."""

    def timed(phase, num):
        return StepHistogram(
            phase=phase, graph_mode=GraphMode.NONE, num_steps=num, sum_ns=num * WINDOW_NS, bucket_counts=()
        )

    captures = [capture(told(0.3))] * 7 + [capture(told(0.1, phase=Phase.PREFILL), phase=Phase.PREFILL)] * 63

    advice = graphs(captures, timed=[timed(Phase.DECODE, 900), timed(Phase.PREFILL, 100)])

    assert advice.predicted.win_ratio == pytest.approx(0.9 * 0.3 + 0.1 * 0.1)
    assert advice.predicted.win_ns == pytest.approx(280_000, abs=1)
    assert advice.predicted.low_ratio == pytest.approx(0.9 * 0.28 + 0.1 * 0.08)
    assert [one.predicted.win_ns for one in advice.phases] == [300_000, 100_000]


def test_a_phase_that_tells_nothing_counts_as_nothing_and_as_its_bound_at_the_high_end():
    silent = capture(refused("a gate", phase=Phase.PREFILL), phase=Phase.PREFILL)

    advice = graphs([*[capture(told(0.3))] * 7, *[silent] * 7])

    assert advice.predicted.win_ratio == pytest.approx(0.5 * 0.3)
    assert advice.predicted.high_ratio == pytest.approx(0.5 * 0.32 + 0.5 * 0.4)
    assert [one.unpredicted for one in advice.phases] == [None, "a gate"]


def test_cards_stand_by_what_they_are_predicted_to_win_and_without_that_by_their_bound():
    """The larger bound of graphs goes behind that of compilation once less is predicted of them."""
    without = advise([capture()] * 7).advice
    little, much = (advise([capture(told(ratio))] * 7).advice for ratio in (0.05, 0.39))

    assert [one.rule for one in without] == ["cuda-graphs", "compilation"]
    assert [one.rule for one in little] == ["compilation", "cuda-graphs"]
    assert [one.rule for one in much] == ["compilation", "cuda-graphs"]
    assert little[0].unpredicted == "no recording of it was replayed"


def test_a_card_about_the_server_stands_among_those_on_steps_by_the_same_rule():
    around = Advice(
        rule="work-ahead", component=Component.ENGINE_LOOP, phase=None, finding="", change="", settings=("--async",),
        at_most_ns=100_000, at_most_ratio=0.1, refuted_by="", per=Per.ITERATION,
    )  # fmt: skip
    report = advise([capture(told(0.05))] * 7)

    both = joined(report, AdviceReport(verdict=Verdict.ACT, advice=(around,)))

    assert [one.rule for one in both.advice] == ["compilation", "work-ahead", "cuda-graphs"]


def test_what_is_predicted_to_win_next_to_nothing_is_left_out_with_its_figure():
    report = advise([capture(told(0.001, wide=0.009))] * 7)

    assert [one.rule for one in report.advice] == ["compilation"]
    assert report.reasons == ("cuda-graphs is left out: it is predicted not to win more than 1.0% of the serving time",)


def test_every_rule_is_replayed_or_says_why_that_tells_nothing():
    named = set(
        re.findall(
            r'e\.find\(\s*"([a-z-]+)"', "".join(Path(each.__file__).read_text() for each in (rules, device_rules))
        )
    )

    assert named == set(REMEDIES) | set(BEYOND)


def test_a_trace_is_replayed_for_the_rules_that_find_something_in_it(real_trace):
    with Recording.open(real_trace("h100_hf_bert-small_infer")) as recording:
        found = foreseen(recording, recording.breakdown)

    assert {one.change for one in found.forecasts} == {Remedy.GRAPH, Remedy.AHEAD, Remedy.COMPILED}
    assert found.steps == recording.breakdown.steps


def test_a_recording_that_cannot_be_trusted_is_not_replayed(real_trace):
    poor = Calibration(dilation=4.0, residual=3.0, state="calibrated")
    with Recording.open(real_trace("h100_hf_bert-small_infer")) as recording:
        doubted = replace(recording.breakdown, calibration=poor)

        assert foreseen(recording, doubted) is doubted


def test_chains_that_are_fused_at_once_share_no_kernel():
    chains = [("a", "b", "c"), ("c", "d"), ("d", "d"), ("d", "e"), ("f", "g")]

    assert apart(chains) == [("a", "b", "c"), ("d", "e"), ("f", "g")]
    assert apart(chains, most=1) == [("a", "b", "c")]
