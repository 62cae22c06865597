"""The sliders of what-if in a real Chromium, in front of a sidecar that replays real traces."""

import gzip
import time
from pathlib import Path

import pytest

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.service.processes.analyzer import Analyzer
from taxbreak_vllm.taxes.analyze import analyze
from tests.output.page.test_page_js import CONTRASTS, UNNAMED, WIDTHS
from tests.service.test_page_walk_chromium import CUT

BERT = Path(__file__).parents[1] / "data" / "traces" / "h100_hf_bert-small_infer.json.gz"
REFUSED = "b300_sglang_qwen3-30b-a3b_decode_cudagraph"


@pytest.fixture
def address(spool, results, put, make_state, clock, start_sidecar, real_trace):
    """A server with a prefill step that can be replayed and a decode step that can't."""
    clock.ns = time.time_ns()
    spool.put_state(make_state(updated_unix_ns=clock() + 3600 * 10**9))
    put("step-a", phase=Phase.PREFILL, trace=gzip.decompress(BERT.read_bytes()))
    put("step-b", phase=Phase.DECODE, trace=gzip.decompress(real_trace(REFUSED).read_bytes()))
    Analyzer(spool, results, lambda capture: analyze(capture.path), retention_ns=10**18, now_ns=clock).turn()
    return start_sidecar()


def settled(page):
    """Wait until nothing is asked any more."""
    page.locator("[data-whatif]").scroll_into_view_if_needed()
    page.locator(".replayed").first.wait_for()
    page.locator("[data-whatif-answers]:not([aria-busy])").wait_for()


def figures(page, phase="prefill"):
    words = page.locator(f"[data-phase={phase}] .figures div").all_inner_texts()
    return dict(line.split("\n") for line in words)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_slower_host_is_asked_for_by_keyboard_and_its_answer_reads_well(visit, shoot, address, scheme, width):
    with visit(address, scheme=scheme, width=width) as page:
        settled(page)
        assert figures(page)["predicted"] == "4.48 ms (× 1.00)"
        page.get_by_label("host, times").focus()
        for _ in range(10):
            page.keyboard.press("ArrowLeft")
        page.get_by_text("prefill: 2.25 ms instead of 4.48 ms").wait_for()
        settled(page)
        shoot(page, f"whatif-{scheme}-{width}")

        assert figures(page)["predicted"] == "2.25 ms (× 0.50)"
        assert page.get_by_label("host, times").get_attribute("aria-valuetext") == "0.50 times"
        assert page.locator("[data-phase=prefill] code").inner_text().endswith("/step-a AFTER")
        assert "No answer: contention is 3.6%" in page.locator("[data-phase=decode]").inner_text()
        scroll, client = page.evaluate(WIDTHS)
        assert scroll <= client
        least, where = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, where
        assert page.evaluate(UNNAMED) == []
        if width == 390:
            assert page.evaluate(CUT) == []


def test_the_strips_are_as_long_as_the_step_was_and_is_predicted(visit, address):
    ends = """() => [...document.querySelectorAll("[data-phase=prefill] .strips svg")].map((svg) => {
      const box = svg.getBBox();
      return [svg.getAttribute("aria-label").split(":")[0], Math.round(box.x + box.width)];
    })"""
    with visit(address) as page:
        settled(page)
        page.get_by_label("host, times").fill("0.5")
        page.get_by_text("prefill: 2.25 ms instead of 4.48 ms").wait_for()

        strips = dict(page.evaluate(ends))
    assert strips["recorded host"] == 1000
    assert strips["predicted host"] == 500
    assert 450 < strips["predicted device"] < 500 < strips["recorded device"]


def test_one_class_of_the_host_is_changed_by_itself_and_all_is_put_back(visit, address):
    with visit(address) as page:
        settled(page)
        page.get_by_text("Host by class").click()
        page.get_by_label("python, times").fill("0.5")
        page.get_by_text("recorded with --host python=0.5, the same steps").wait_for()
        page.get_by_label("kernels, times").fill("2")
        page.get_by_text("recorded with --host python=0.5 --kernels 2, the same steps").wait_for()
        page.get_by_role("button", name="as recorded").click()
        page.get_by_text("prefill: 4.48 ms instead of 4.48 ms").wait_for()

        assert page.get_by_label("python, times").input_value() == "1"


def test_what_these_steps_cannot_tell_is_not_offered_and_why_is_said(visit, address):
    with visit(address) as page:
        settled(page)

        assert page.get_by_label("one full graph").is_disabled()
        said = page.locator("[data-whatif-beyond] li").all_inner_texts()
    assert said[0].startswith("Not to be told: --graph full: what a graph launch costs")
    assert said[1].startswith("Not to be told: --async: ")


def test_while_a_slider_is_dragged_no_question_is_asked_before_the_last_one_is_answered(visit, address):
    with visit(address) as page:
        settled(page)
        asked, most, open_now = [], [0], set()

        def begin(request):
            if "/whatif?" in request.url:
                asked.append(request.url)
                open_now.add(request)
                most[0] = max(most[0], len(open_now))

        page.on("request", begin)
        page.on("requestfinished", lambda request: open_now.discard(request))
        slider = page.get_by_label("kernels, times")
        for step in range(40):
            slider.fill(f"{0.5 + step / 20:.2f}")
            page.wait_for_timeout(20)
        page.get_by_text("recorded with --kernels 2.45, the same steps").wait_for()

    assert most[0] == 1
    assert len(asked) < 20


def test_the_page_of_a_step_asks_about_that_step(visit, address):
    with visit(f"{address}/steps/step-a") as page:
        settled(page)

        assert page.locator(".replayed h3").all_inner_texts() == ["prefill step-a"]
        assert page.get_by_role("button", name="take the newest steps").count() == 0


def test_a_step_that_is_evicted_meanwhile_is_said_and_the_newest_are_one_click_away(visit, address, spool):
    with visit(address, expected_log=("404",)) as page:
        settled(page)
        spool.find("step-b").trace_path.parent.rename(spool.root / "gone")
        page.get_by_label("kernels, times").fill("0.5")
        page.get_by_text("No answer: no such capture in the spool").wait_for()
        page.get_by_role("button", name="take the newest steps").click()
        page.get_by_text("recorded with --kernels 0.5, the same steps").wait_for()

        assert page.locator(".replayed h3").all_inner_texts() == ["prefill step-a"]
