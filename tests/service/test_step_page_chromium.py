"""A step's page in a real Chromium: its flame graph, by keyboard and on a phone, and its trace handed to Perfetto."""

import gzip
import json
from pathlib import Path

import pytest

from taxbreak_vllm.service.processes.analyzer import Analyzer
from taxbreak_vllm.taxes.analyze import analyze
from tests.output.page.test_page_js import CONTRASTS, LOOKS, UNNAMED, WIDTHS

BERT = Path(__file__).parents[1] / "data" / "traces" / "h100_hf_bert-small_infer.json.gz"
ASKED_TOO_EARLY = "target origin"  # Chromium's word for a window that has not loaded yet

# The other side of Perfetto's protocol: it answers a PING, and says what it was given.
STAND_IN = """<!doctype html><title>stand-in</title><pre></pre><script>
addEventListener("message", async (event) => {
  if (event.data === "PING") return event.source.postMessage("PONG", event.origin);
  const { buffer, title } = event.data.perfetto;
  const text = await new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const events = JSON.parse(text).traceEvents.length;
  document.querySelector("pre").textContent = JSON.stringify({ title, events });
});
</script>"""


@pytest.fixture
def address(spool, results, put, start_sidecar):
    """The page of a step whose Python stacks were recorded."""
    put("a", trace=gzip.decompress(BERT.read_bytes()))
    Analyzer(spool, results, lambda capture: analyze(capture.path), retention_ns=10**18).turn()
    return f"{start_sidecar()}/steps/a"


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_the_flame_graph_reads_well(visit, shoot, address, scheme, width):
    with visit(address, scheme=scheme, width=width) as page:
        page.locator("[data-flame]").scroll_into_view_if_needed()
        page.locator(".flame .fl").first.wait_for()
        shoot(page, f"step-{scheme}-{width}")

        assert page.locator("[data-flame-words]").inner_text().startswith("2.47 ms of ΔFT (1 × decode)")
        scroll, client = page.evaluate(WIDTHS)
        assert scroll <= client
        least, where = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, where
        assert page.evaluate(UNNAMED) == []


def test_a_frame_is_zoomed_to_by_keyboard_and_its_figures_are_said(visit, address):
    with visit(address) as page:
        page.locator("[data-flame]").scroll_into_view_if_needed()
        page.locator(".flame .fl").first.wait_for()
        whole = page.locator(".flame .fl").count()
        page.locator(".flame [tabindex='0']").focus()

        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        said = page.locator("[data-flame-tip]").inner_text()
        page.keyboard.press("Enter")
        zoomed = page.locator("[data-flame-zoom]").inner_text()
        focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
        page.keyboard.press("0")

        assert " % of ΔFT), " in said
        assert "the device waited for " in said
        assert zoomed.split(": ")[-1] == said.split(": ")[-1]
        assert focused == said
        assert page.locator(".flame .fl").count() == whole
        assert page.locator("[data-flame-zoom]").inner_text() == ""


@pytest.mark.nightly
def test_widths_are_of_all_or_of_what_the_device_waited_for(visit, address):
    share = "frames => frames.map(f => Math.round(parseFloat(f.style.width)))"
    with visit(address) as page:
        page.locator("[data-flame]").scroll_into_view_if_needed()
        page.locator(".flame .fl").first.wait_for()
        whole = page.locator(".flame .fl").evaluate_all(share)
        page.locator("[data-flame-measure]").select_option("exposed_ns")

        assert page.locator(".flame .fl").evaluate_all(share) != whole


@pytest.mark.nightly
def test_the_table_says_the_same_as_the_graph(visit, address):
    with visit(address) as page:
        page.locator("[data-flame]").scroll_into_view_if_needed()
        rows = page.locator("[data-flame] tbody tr")
        page.locator("[data-flame] tbody td.name").first.wait_for()
        first = rows.first.inner_text().split("\t")
        heads = page.locator("[data-flame] thead th").all_inner_texts()

    assert heads[0] == "function or op"
    assert first[0].startswith("_call_impl · module.py:1743")
    assert first[1] == "129.1 µs"


def test_perfetto_is_handed_the_trace_and_fetches_nothing(visit, address):
    with visit(address, expected_log=[ASKED_TOO_EARLY]) as page:
        page.context.route(
            "https://ui.perfetto.dev/**", lambda route: route.fulfill(body=STAND_IN, content_type="text/html")
        )
        asked = []
        with page.expect_popup() as opened:
            page.get_by_role("button", name="open in Perfetto").click()
        opened.value.on("request", lambda request: asked.append(request.url))
        opened.value.wait_for_function("document.querySelector('pre')?.textContent")
        given = json.loads(opened.value.locator("pre").inner_text())
        page.get_by_text("Perfetto has the trace.").wait_for()

    assert given["title"] == "taxbreak a"
    assert given["events"] == len(json.loads(gzip.decompress(BERT.read_bytes()))["traceEvents"])
    assert not [url for url in asked if address.split("/steps")[0] in url]


@pytest.mark.nightly
def test_a_blocked_window_is_said_and_the_download_offered(visit, address):
    with visit(address) as page:
        page.evaluate("window.open = () => null")
        page.get_by_role("button", name="open in Perfetto").click()

        page.get_by_text("allow pop-ups for this page, or download the raw trace").wait_for()
        assert page.get_by_role("link", name="raw trace").get_attribute("href").endswith("/steps/a/trace")


@pytest.mark.nightly
def test_a_trace_that_is_gone_is_said_and_the_window_closed(visit, address, spool):
    with visit(address, expected_log=["404"]) as page:
        page.context.route(
            "https://ui.perfetto.dev/**", lambda route: route.fulfill(body=STAND_IN, content_type="text/html")
        )
        (capture,) = spool.captures()
        capture.trace_path.unlink()
        with page.expect_popup() as opened:
            page.get_by_role("button", name="open in Perfetto").click()

        page.get_by_text("Not opened in Perfetto: no such capture").wait_for()
        if not opened.value.is_closed():
            opened.value.wait_for_event("close")
