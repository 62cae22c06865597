"""A sweep and a prediction as a page: what is there of each point, what is dim, why there is no answer."""

import re
from dataclasses import replace

import pytest

from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.sweep import Aim, SweepPoint, Swept
from taxbreak_vllm.model.workload import Bounds, Latencies, Prediction, Validation
from taxbreak_vllm.output.page.workload import prediction_view, sweep_view
from taxbreak_vllm.output.workload_html import workload_html, write_workload_html

CHECKS = (Validation(name="identity", passed=True, said="1,200 of 1,200"),)
SLO = {"ttft": 0.5, "tpot": 0.05}


def spread(p90):
    return {"mean": p90, "p50": p90 / 2, "p90": p90, "p99": 2 * p90}


def latencies(tokens_per_s, ttft, ratio=1.0):
    return Latencies(
        num_requests=80,
        tokens_per_s=tokens_per_s,
        ttft_s=spread(ttft),
        tpot_s=spread(0.02),
        e2e_s=spread(1.0),
        slo_ratio=ratio,
    )


def bounds(**shares):
    ratios = {name: shares.get(name, 0.0) for name in ("frontend", "queue", "kv", "host", "device")}
    return Bounds(
        frontend_ratio=0.1,
        host_ratio=0.2,
        device_ratio=0.6,
        kv_peak_ratio=0.5,
        num_preemptions=0,
        e2e_ratio=ratios,
        bound=max(ratios, key=ratios.get),
    )


def point(seqs, tokens_per_s=100.0, ttft=0.1, **members):
    known = {
        "requests_per_s": 2.0,
        "predicted": latencies(tokens_per_s, ttft),
        "bounds": bounds(device=0.75, queue=0.25),
        "meets_slo": True,
        "is_on_front": True,
        "band": {"tokens_per_s": (90.0, 110.0), "ttft_p90": (0.09, 0.12)},
    }
    return SweepPoint(changes={"max_num_seqs": str(seqs)}, load=1.0, **(known | members))


@pytest.fixture
def swept():
    """A point on the front, one that another beats, one that does not keep the SLO, one without an answer."""
    points = (
        point(8),
        point(4, 90.0, 0.2, is_on_front=False),
        point(2, 120.0, 0.9, meets_slo=False, bounds=bounds(kv=0.6, host=0.4)),
        point(999, predicted=None, bounds=None, band={}, meets_slo=None, is_on_front=False, reason="<not> known"),
    )
    return Swept(
        engine="engine-0", vllm="0.32.0", load="as recorded", slo=SLO, attainment=0.9, checks=CHECKS, points=points
    )


def test_each_point_with_an_answer_is_a_mark_in_each_chart_of_the_slo(swept):
    view = sweep_view(swept)

    assert [chart.title for chart in view.charts] == ["TTFT p90", "TPOT p90"]
    ttft = view.charts[0]
    assert sorted(mark.css for mark in ttft.marks) == ["beaten", "fails", "front"]
    by_css = {mark.css: mark for mark in ttft.marks}
    assert by_css["beaten"].x < by_css["front"].x < by_css["fails"].x
    assert by_css["fails"].y < ttft.slo < by_css["beaten"].y < by_css["front"].y  # in percent from the top


def test_the_bar_of_a_point_is_its_mean_e2e(swept):
    view = sweep_view(swept)

    assert view.points[0].parts == (
        *(("frontend", "frontend", 0), ("queue", "queue", 250_000_000), ("blocked", "KV cache", 0)),
        *(("host", "host", 0), ("active", "device", 750_000_000)),
    )
    assert view.legend == (("queue", "queue"), ("blocked", "KV cache"), ("host", "host"), ("active", "device"))


def test_the_document_needs_no_script_nor_other_file_and_says_why_there_is_no_answer(swept):
    document = workload_html(swept)

    assert "<script" not in document
    assert "default-src &#39;none&#39;" in document
    assert re.findall(r'(?:href|src)="(?!#|data:)', document) == []
    assert "max_num_seqs=999, 1x</b>: &lt;not&gt; known" in document
    assert "1 of them without an answer; 2 keep the SLO; most throughput: max_num_seqs=8, 1x: 100.0 tok/s" in document
    assert document.count('<circle class="beaten" cx="6" cy="6"') == 2  # in the legend and in the table


def test_a_search_says_of_each_setting_what_lies_beyond(swept):
    found = replace(swept, aim=Aim.THROUGHPUT, points=(replace(point(8), ended_by="2.1x: 80.0% keep to the SLO"),))

    view = sweep_view(found)

    assert view.heads[-1] == "beyond"
    assert view.points[0].figures[-1] == ("", "2.1x: 80.0% keep to the SLO")
    assert view.charts == ()  # of one point there is none
    assert "2.1x: 80.0% keep to the SLO" in workload_html(found)


def test_a_prediction_shows_each_figure_beside_what_was_recorded():
    found = Prediction(
        engine="engine-0",
        vllm="0.32.0",
        load="2 times as fast",
        changes={"max_num_seqs": "32"},
        checks=CHECKS,
        measured=latencies(50.0, 0.1),
        predicted=latencies(95.0, 0.2, 0.97),
        band={"tokens_per_s": (90.0, 100.0), "ttft_p90": (0.15, 0.25)},
        bounds=bounds(device=1.0),
    )

    view = prediction_view(found)
    (ttft,) = [each for each in view.intervals if each.name == "TTFT p90"]

    assert (ttft.recorded, ttft.predicted, ttft.band) == ("100.0", "200.0", "150.0 to 250.0")
    assert 0 <= ttft.was < ttft.low < ttft.at < ttft.high <= 100
    assert len(view.intervals) == 9
    assert "97.0% of the requests keep to the SLO" in workload_html(found)


def test_without_an_answer_the_page_says_why(swept):
    failed = (Validation(name="identity", passed=False, said="1,199 of 1,200"),)
    sweep = replace(swept, points=(), checks=failed, reason="not batched alike")
    prediction = Prediction(
        engine="engine-0", vllm="0.32.0", load="2x", changes={}, checks=failed, reason="not batched alike"
    )

    for found in (sweep, prediction):
        assert "No answer: not batched alike." in workload_html(found)
        assert "failed; 1,199 of 1,200" in workload_html(found)


def test_a_page_that_cannot_be_written_is_said_in_a_line(swept, tmp_path):
    with pytest.raises(TaxbreakError, match="none"):
        write_workload_html(swept, tmp_path / "none" / "page.html")
