"""From server to step and back in a real Chromium: a sidecar with its analyzer over a spool of recorded traces."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from live_states import engine_state, frontend_state, waterfall

from taxbreak_vllm import analyze
from taxbreak_vllm.model.engine import EnginePart
from taxbreak_vllm.model.step import Phase, Server
from taxbreak_vllm.service.processes.analyzer import Analyzer
from tests.output.page.test_page_js import CONTRASTS, LOOKS, UNNAMED, WIDTHS

TRACE = Path(__file__).parents[1] / "data" / "traces" / "h100_hf_bert-small_infer.json.gz"
TINY = Server(server_id="vllm-a", model_name="tiny", device_type="cuda")
AGAIN = Server(server_id="vllm-c", model_name="tiny", device_type="cuda")
SMALL = Server(server_id="vllm-b", model_name="small", device_type="cuda")
LATER_NS = 3600 * 10**9  # so that the servers run as long as the test does

# What is cut: a cell that ends right of the window, or whose content is wider than it; and what scrolls sideways.
CUT = """() => [...document.querySelectorAll("main *")]
  .filter((e) => e.checkVisibility() && !e.closest("svg, .lanes, thead"))
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5 ||
    (e.matches("td, th, p, li, h1, h2, h3, code, pre, .scroll") && e.scrollWidth > e.clientWidth + 1 &&
     getComputedStyle(e).display !== "inline"))
  .map((e) => e.outerHTML.slice(0, 160))"""
FOCUS = """() => { const e = document.activeElement, s = getComputedStyle(e);
  return [e.textContent.trim(), s.outlineStyle, parseFloat(s.outlineWidth)]; }"""


@pytest.fixture
def now(clock):
    """Make the test's clock that of the sidecar."""
    clock.ns = time.time_ns()
    return clock


@pytest.fixture
def put_trace(spool, make_info, now):
    """Put a capture of a real trace into the spool."""

    def put_trace(step_id, *, server=TINY, phase=Phase.DECODE, **options):
        info = make_info(step_id, server=server, phase=phase, **options)
        now.sleep_s(0.001)
        spool.put(replace(info, num_plain=20), lambda path: shutil.copy(TRACE, path))

    return put_trace


@pytest.fixture
def run(spool, make_state, now):
    """Let a server run."""

    def run(server, *, age_s=0, **fields):
        spool.put_state(
            make_state(server=server, updated_unix_ns=now() + LATER_NS, started_ns=now() - age_s * 10**9, **fields)
        )
        engine = engine_state(exposed={part: 0.1 for part in EnginePart})
        spool.put_engine_state(
            replace(
                engine, server_id=server.server_id, model_name=server.model_name, started_unix_ns=now() - age_s * 10**9,
                updated_unix_ns=now() + LATER_NS,
            )
        )  # fmt: skip

    return run


@pytest.fixture
def several(run, put_trace, start_sidecar, spool, results, now):
    """The address of a sidecar of two models, one of them with a server that stopped; all steps are analyzed."""
    run(TINY, age_s=60)
    run(SMALL, age_s=30)
    for server in (TINY, AGAIN, SMALL):
        put_trace(f"step-of-{server.server_id}", server=server)
    Analyzer(spool, results, lambda capture: analyze(capture.path), retention_ns=10**15, now_ns=now).turn()
    return start_sidecar()


def steps(page):
    return page.locator("#a0-steps tbody a").all_inner_texts()


def test_each_server_has_an_address_that_survives_reload_and_the_back_button(visit, several):
    with visit(several) as page:
        assert steps(page) == ["step-of-vllm-b"]  # of the one that started last
        page.get_by_role("link", name="vllm-a").click()
        page.wait_for_url("**/?model=tiny&server=vllm-a")
        assert (page.locator("h1").inner_text(), steps(page)) == ("taxbreak tiny", ["step-of-vllm-a"])
        page.reload()
        assert steps(page) == ["step-of-vllm-a"]
        page.get_by_role("link", name="vllm-c (stopped)").click()
        page.wait_for_url("**server=vllm-c")
        assert steps(page) == ["step-of-vllm-c"]
        assert page.locator(".choice [aria-current=page]").inner_text() == "vllm-c (stopped)"
        page.go_back()
        page.wait_for_url("**/?model=tiny&server=vllm-a")
        assert steps(page) == ["step-of-vllm-a"]

    with visit(f"{several}/?model=small") as page:
        assert steps(page) == ["step-of-vllm-b"]


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_a_step_is_reached_by_keyboard_and_its_page_reads_well(visit, shoot, several, scheme, width):
    with visit(several, scheme=scheme, width=width) as page:
        for _ in range(80):
            page.keyboard.press("Tab")
            focused, style, outline = page.evaluate(FOCUS)
            if focused == "step-of-vllm-b":
                break
        assert (focused, style) == ("step-of-vllm-b", "solid")
        assert outline >= 2
        page.keyboard.press("Enter")
        page.wait_for_url("**/steps/step-of-vllm-b")

        page.locator("[data-timeline]").scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()
        shoot(page, f"step-{scheme}-{width}")
        assert page.locator("h1").inner_text() == "taxbreak decode step"
        assert (
            page.locator(".lead").inner_text().startswith("This decode took 4.43 ms while it was recorded; for 3.18 ms")
        )
        scroll, client = page.evaluate(WIDTHS)
        assert scroll <= client
        least, where = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, where
        assert page.evaluate(UNNAMED) == []
        if width == 390:
            assert page.evaluate(CUT) == []

        page.get_by_role("link", name="all steps").click()
        page.wait_for_url("**/?model=small&server=vllm-b#a0-steps")
        assert steps(page) == ["step-of-vllm-b"]


@pytest.mark.nightly
def test_the_raw_trace_of_a_step_is_one_click_away(visit, several):
    with visit(f"{several}/steps/step-of-vllm-a") as page, page.expect_download() as download:
        page.get_by_role("link", name="raw trace").click()

    assert download.value.suggested_filename == "step-of-vllm-a.json.gz"


@pytest.mark.nightly
def test_a_step_that_is_not_there_says_so_and_leads_back(visit, several):
    with visit(f"{several}/steps/never", expected_log=("404",)) as page:
        assert "No such step" in page.locator("h1").inner_text()
        page.get_by_role("link", name="the newest steps").click()
        page.locator("#a0-steps a").wait_for()


def test_record_leads_to_the_steps_that_it_recorded(visit, run, put_trace, start_sidecar, spool, until):
    run(TINY)
    with visit(start_sidecar()) as page:
        assert page.locator(".choice a").count() == 0
        page.get_by_label("steps", exact=True).fill("2")
        page.get_by_role("button", name="Record").click()
        request = until(lambda: spool.read_request("vllm-a"))
        for name in ("first", "second"):
            put_trace(name, capture_id=request.capture_id)
        run(TINY, capture_id=request.capture_id, capture_recorded=2)

        page.get_by_text("done: 2 of 2 steps recorded and analyzed").wait_for()
        assert sorted(page.locator("#capture-status a").all_inner_texts()) == ["first", "second"]
        page.locator("#capture-status a").first.click()
        page.locator("h1", has_text="decode step").wait_for()


def test_an_empty_page_tells_the_commands_until_there_is_something_to_show(
    visit, shoot, run, put_trace, start_sidecar, settings
):
    empty = "Nothing is recorded yet"
    url = start_sidecar()
    with visit(url) as page:
        shoot(page, "empty-light-1280")
        page.get_by_role("heading", name=empty).wait_for()
        plugin, record = page.locator(".empty code:visible").all_inner_texts()
        assert plugin == f"TAXBREAK_SPOOL={settings.spool} VLLM_PLUGINS=taxbreak vllm serve MODEL"
        assert record == f"taxbreak capture --url {url} --steps 4"
        assert not page.get_by_text("nothing yet").first.is_visible()

        run(TINY)
        page.get_by_role("heading", name="No step was recorded in the last 15 min").wait_for()
        assert page.locator(".empty code:visible").all_inner_texts() == [record]
        assert page.locator("h1").inner_text() == "taxbreak tiny"
        assert page.locator("#capture [name=server_id]").input_value() == "vllm-a"

        put_trace("first")
        page.locator("#a0-steps a").wait_for()
        assert not page.locator(".empty").is_visible()
        assert page.get_by_role("heading", name="Is it the host?").is_visible()


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.nightly), "dark"])
def test_on_a_phone_nothing_is_cut_and_nothing_scrolls_sideways(visit, shoot, several, spool, now, scheme):
    requests = [waterfall(number * 0x1234567, started_unix_ns=now(), render=41) for number in range(100)]
    spool.put_frontend_state(replace(frontend_state(*requests), server_id="vllm-a", updated_unix_ns=now() + LATER_NS))
    spool.put_waterfalls("vllm-a", "0", requests)
    with visit(f"{several}/?server=vllm-a", width=390, scheme=scheme) as page:
        page.locator("[data-timeline]").scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()
        shoot(page, f"walk-{scheme}-390")

        assert page.evaluate(CUT) == []
        heads = page.locator("#a0-steps tbody td").evaluate_all("cells => cells.map((cell) => cell.dataset.head)")
        assert heads[:4] == ["step", "phase", "graph mode", "step time"]


@pytest.mark.nightly
def test_host_work_is_a_whole_whose_part_is_what_the_device_waited_for(visit, several):
    widths = "bars => bars.map((b) => [b.getAttribute('class'), +b.getAttribute('width')])"
    with visit(several) as page:
        row = page.get_by_role("region", name="The host's work").locator("tbody tr")
        parts = dict(row.locator("svg.bar rect").evaluate_all(widths))
        cells = row.locator("td[data-work]").all_inner_texts()

    waited = sum(width for css, width in parts.items() if "pale" not in css)
    assert sum(parts.values()) == pytest.approx(1000, abs=0.1)
    assert cells[0].split("\n") == ["4.41 ms", f"waited for {waited / 10:.1f}% of it"]
    assert [cell.count(" ms") + cell.count(" µs") for cell in cells] == [1] * 5  # never two times side by side


@pytest.mark.nightly
def test_after_a_restart_the_change_is_a_closed_card(
    visit, shoot, spool, make_state, record, now, start_sidecar, results
):
    record(20, server=TINY, requests=2)
    spool.put_state(
        make_state(server=TINY, settings={"max_num_seqs": "2"}, started_ns=now() - 10**12, updated_unix_ns=1)
    )
    spool.put_state(
        make_state(server=AGAIN, settings={"max_num_seqs": "8"}, started_ns=now(), updated_unix_ns=now() + LATER_NS)
    )
    record(20, server=AGAIN, requests=8, plain_ns=250_000)

    with visit(start_sidecar()) as page:
        card = page.locator(".card.closed[data-held=held]")
        card.scroll_into_view_if_needed()
        shoot(page, "held-light-1280")

        assert card.locator("h3").inner_text() == "It held: batch-size"
        assert "max_num_seqs 2 → 8: decode output tokens take 0.31×" in card.inner_text()
