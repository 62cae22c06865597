"""The file of `analyze --html`, opened from disk in a real Chromium."""

from pathlib import Path

import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.output.html import write_html

SERVING = Path(__file__).parents[2] / "data" / "serving.json"
B200 = "b200_vllm_eager_infer"
LOOKS = [
    ("light", 1280),
    ("dark", 390),
    pytest.param("dark", 1280, marks=pytest.mark.nightly),
    pytest.param("light", 390, marks=pytest.mark.nightly),
]

# Every visible text against what is painted behind it: WCAG's contrast ratio, least first.
CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) => sum + part * linear(rgb[i] / 255), 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, script, style, .skip")) continue;
    const paint = (of) => parse(getComputedStyle(of).backgroundColor);
    let behind = element;
    while (behind && (paint(behind)[3] ?? 1) === 0) behind = behind.parentElement;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind ? paint(behind) : [255, 255, 255])];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 120)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""
UNNAMED = """() => [...document.querySelectorAll("button, input, select, [tabindex], canvas, svg[role=img]")]
  .filter((e) => e.checkVisibility() && !e.getAttribute("aria-label") && !e.labels?.length && !e.textContent.trim())
  .map((e) => e.outerHTML.slice(0, 120))"""
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page of three steps with graphs."""
    path = tmp_path_factory.mktemp("page") / "serving.html"
    write_html([with_plain_step(analyze(SERVING), 300_000)], path)
    return path.as_uri()


@pytest.fixture(scope="module")
def real_address(real_trace, tmp_path_factory):
    """A page of a real vLLM prefill step on a B200, as if its plain step had been timed at 60 ms."""
    path = tmp_path_factory.mktemp("page") / "b200.html"
    write_html([with_plain_step(analyze(real_trace(B200)), 60_000_000)], path)
    return path.as_uri()


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_a_real_trace_reads_well(visit, shoot, real_address, scheme, width):
    with visit(real_address, scheme=scheme, width=width) as page:
        page.locator("[data-timeline] tbody button").first.wait_for()
        shoot(page, f"file-{scheme}-{width}")

        assert page.get_by_role("heading", name="3 changes worth trying").is_visible()
        scroll, client = page.evaluate(WIDTHS)
        assert scroll <= client
        least, where = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, where
        assert page.evaluate(UNNAMED) == []


def test_its_numbers_are_those_of_the_breakdown(visit, real_trace, real_address):
    breakdown = analyze(real_trace(B200))
    with visit(real_address) as page:
        (row,) = [row.inner_text().split() for row in page.locator("tr[data-phase=prefill]").all()[:1]]

    busy = f"{breakdown.total.device.active_ns / breakdown.steps[0].device.window_ns:.1%}"
    waits = f"{breakdown.total.device.idle.host_ns / breakdown.steps[0].device.window_ns:.1%}"
    assert row == ["prefill", f"{breakdown.total.hdbi:.3f}", busy, busy, waits, "87.41", "ms", "768", "1"]


def test_the_charts_are_drawn_and_the_timeline_pans_and_zooms_by_keyboard(visit, address):
    with visit(address) as page:
        lanes, shown = page.locator(".lanes"), page.locator("[data-range]")
        lanes.scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()
        whole = shown.inner_text()

        lanes.focus()
        page.keyboard.press("+")
        closer = shown.inner_text()
        page.keyboard.press("ArrowRight")
        later = shown.inner_text()
        page.keyboard.press("0")

        assert len({whole, closer, later}) == 3
        assert shown.inner_text() == whole == "0.0 µs to 417.0 µs of 417.0 µs"
        assert page.locator(".uplot canvas").count() == 2
        colors = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
        assert all(canvas.evaluate(colors) > 20 for canvas in page.locator("canvas").all())


@pytest.mark.nightly
def test_the_longest_wait_is_zoomed_to_and_another_step_chosen(visit, address):
    with visit(address) as page:
        page.locator(".lanes").scroll_into_view_if_needed()
        wait = page.locator("[data-timeline] tbody button").first
        wait.wait_for()
        before = page.locator("[data-range]").inner_text()

        wait.click()
        zoomed = page.locator("[data-range]").inner_text()
        page.locator("[data-steps]").select_option(index=1)
        page.wait_for_function("document.querySelector('[data-range]').textContent.endsWith('of 272.0 µs')")

        assert zoomed != before
        assert page.locator("[data-fusion-words]").inner_text().startswith("36 kernels run in graphs")


@pytest.mark.nightly
def test_a_flame_graph_without_functions_says_how_to_get_them_and_shows_phases(visit, address):
    with visit(address) as page:
        words = page.locator("[data-flame-words]").inner_text()
        frames = page.locator(".flame .fl").evaluate_all("frames => frames.map(f => f.getAttribute('aria-label'))")

    assert words.startswith("390.0 µs of ΔFT (1 × prefill, 3 × decode)")
    assert "its functions were not recorded: a capture with stacks names them" in words
    assert frames[0].startswith("prefill: 270.0 µs (69.2 % of ΔFT)")
    assert any(frame.startswith("[python]: ") for frame in frames)


@pytest.mark.nightly
def test_a_segment_says_what_it_is_under_the_pointer(visit, address):
    with visit(address) as page:
        lanes = page.locator(".lanes")
        lanes.scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()
        box = lanes.bounding_box()

        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 18 + 2 * 42 + 25)

        assert page.locator(".tip").inner_text().startswith(("active", "idle: "))


def test_everything_that_can_be_done_can_be_reached_by_keyboard(visit, address):
    with visit(address) as page:
        wanted = page.locator("button:visible, select:visible, .lanes, .scroll, a.skip").count()

        reached = set()
        for _ in range(wanted + 5):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))

        assert len(reached - {-1}) >= wanted
