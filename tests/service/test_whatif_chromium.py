"""The sliders of what-if in a real Chromium, in front of a sidecar that replays real traces."""

import gzip
import shutil
import time
from pathlib import Path

import pytest

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.service.processes.analyzer import Analyzer
from taxbreak_vllm.taxes.analyze import analyze
from tests.output.page.test_page_js import CONTRASTS, UNNAMED, WIDTHS
from tests.service.test_page_walk_chromium import CUT

BERT = Path(__file__).parents[1] / "data" / "traces" / "h100_hf_bert-small_infer.json.gz"
REFUSED = "h800_deepseek_train"


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


def figures(page):
    words = page.locator("[data-replayed=prefill] .figures div").all_inner_texts()
    return dict(line.split("\n") for line in words)


def strips(page):
    """How long each is, in thousandths of the axis."""
    found = page.locator("[data-replayed=prefill] .strips svg").evaluate_all(
        """svgs => svgs.map((svg) => {
          const box = svg.getBBox();
          return [svg.getAttribute("aria-label").split(":")[0], Math.round(box.x + box.width)];
        })"""
    )
    return dict(found)


def test_sliders_replay_the_newest_steps_one_question_at_a_time(visit, address):
    with visit(address) as page:
        settled(page)
        assert figures(page)["predicted"] == "4.48 ms (× 1.00)"
        assert page.get_by_label("one full graph").is_disabled()
        assert [said.partition(": ")[2][:20] for said in page.locator("[data-whatif-beyond] li").all_inner_texts()] == [
            "--graph full: what a", "--async: needs three",
        ]  # fmt: skip
        assert "No answer: peers is 17.5%" in page.locator("[data-replayed=decode]").inner_text()

        page.get_by_label("host, times").focus()
        for _ in range(10):
            page.keyboard.press("ArrowLeft")
        page.get_by_text("prefill: 2.25 ms instead of 4.48 ms").wait_for()
        assert figures(page)["predicted"] == "2.25 ms (× 0.50)"
        assert page.get_by_label("host, times").get_attribute("aria-valuetext") == "0.50 times"
        assert page.locator("[data-replayed=prefill] code").inner_text().endswith("/step-a AFTER")
        lengths = strips(page)
        assert (lengths["recorded host"], lengths["predicted host"]) == (1000, 502)
        assert lengths["predicted device"] < 502 < lengths["recorded device"]

        page.get_by_text("Host by class").click()
        page.get_by_label("python, times").fill("0.25")
        page.get_by_text("recorded with --host 0.5 --host python=0.25, the same steps").wait_for()
        page.get_by_role("button", name="reset").click()
        page.get_by_text("prefill: 4.48 ms instead of 4.48 ms").wait_for()
        assert page.get_by_label("python, times").input_value() == "1"

        settled(page)
        begun, most, open_now = [], [0], set()

        def begin(request):
            if "/whatif?" in request.url:
                begun.append(request.url)
                open_now.add(request)
                most[0] = max(most[0], len(open_now))

        page.on("request", begin)
        page.on("requestfinished", lambda request: open_now.discard(request))
        for step in range(40):
            page.get_by_label("kernels, times").fill(f"{0.5 + step / 20:.2f}")
        page.get_by_text("recorded with --kernels 2.45, the same steps").wait_for()
        assert most[0] == 1
        assert len(begun) < 20


@pytest.mark.nightly
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_an_answer_and_a_refusal_read_well(visit, shoot, address, scheme, width):
    with visit(address, scheme=scheme, width=width) as page:
        settled(page)
        page.get_by_label("host, times").fill("0.5")
        page.get_by_text("prefill: 2.25 ms instead of 4.48 ms").wait_for()
        settled(page)
        shoot(page, f"whatif-{scheme}-{width}")

        scroll, client = page.evaluate(WIDTHS)
        assert scroll <= client
        least, where = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, where
        assert page.evaluate(UNNAMED.replace("document", "document.querySelector('[data-whatif]')")) == []
        if width == 390:
            assert page.evaluate(CUT) == []


@pytest.mark.nightly
@pytest.mark.parametrize(("step", "phase", "is_mute"), [("step-a", "prefill", False), ("step-b", "decode", True)])
def test_the_page_of_a_step_asks_about_that_step_alone(visit, address, step, phase, is_mute):
    with visit(f"{address}/steps/{step}") as page:
        settled(page)

        assert page.locator(".replayed h3").all_inner_texts() == [f"{phase} {step}"]
        assert page.get_by_role("button", name="take the newest steps").count() == 0
        assert page.get_by_label("host, times").is_disabled() is is_mute


@pytest.mark.nightly
def test_a_step_that_is_evicted_meanwhile_is_said_and_the_newest_are_one_click_away(visit, address, spool):
    with visit(address, expected_log=("404",)) as page:
        settled(page)
        shutil.rmtree(spool.find("step-b").path)
        page.get_by_label("kernels, times").fill("0.5")
        page.get_by_text("No answer: no such capture in the spool").wait_for()
        page.get_by_role("button", name="take the newest steps").click()
        page.get_by_text("recorded with --kernels 0.5, the same steps").wait_for()

        assert page.locator(".replayed h3").all_inner_texts() == ["prefill step-a"]
