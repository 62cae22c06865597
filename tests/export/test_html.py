"""The page opens from a file, works offline, and takes nothing from a trace for markup."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.errors import TaxbreakError
from taxbreak_vllm.export.html import MAX_BARS, render_html, write_html
from taxbreak_vllm.model import Breakdown, HostTime, Source, StepBreakdown

SERVING = Path(__file__).parents[1] / "data" / "serving.json"
VOID = {"meta", "link", "br", "img", "rect"}


class Page(HTMLParser):
    """Checks that elements nest; collects their attributes and the text."""

    def __init__(self, document):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def page():
    return Page(render_html([analyze(SERVING)]))


def of(page, tag):
    return [attributes for name, attributes in page.elements if name == tag]


def test_the_page_fetches_nothing_and_runs_no_script(page):
    document = render_html([analyze(SERVING)])

    assert not re.findall(r"https?:|//\w|url\(|@import|<script|javascript:| on\w+=", document)
    assert [a.get("href", a.get("src")) for _, a in page.elements if "href" in a or "src" in a] == ["data:,"]
    assert any("default-src 'none'" in a.get("content", "") for a in of(page, "meta"))


def test_the_page_follows_the_light_or_dark_of_its_reader(page):
    assert "color-scheme: light dark" in render_html([])


def test_the_page_shows_steps_bars_families_ops_coverage_and_notes(page):
    headings = [
        text for text in page.text if text in {"Steps", "Host", "Device", "Families", "Dearest ops", "Coverage"}
    ]
    breakdown = analyze(SERVING)

    assert headings == ["Steps", "Host", "Device", "Families", "Dearest ops", "Coverage"]
    assert page.text.count("decode") == 3
    assert set(breakdown.notes) <= set(page.text)
    for family in breakdown.total.families:
        assert family in page.text


def test_a_bar_has_the_parts_of_the_window_in_proportion():
    step = StepBreakdown(name="s", window_ns=1000, host=HostTime(python_ns=250, launch_ns=750))

    page = Page(render_html([Breakdown(source=Source(path="x"), steps=(step,))]))

    bars = [a for a in of(page, "rect") if a.get("height") == "16"]
    assert [(a["class"], a["x"], a["width"]) for a in bars] == [
        ("python", "0.00", "250.00"),
        ("launch", "250.00", "750.00"),
    ]
    assert any("Python 0.2 µs (25.0%)" in a.get("aria-label", "") for a in of(page, "svg"))


def test_whatever_a_trace_says_is_text():
    hostile = '"><img src=x onerror=alert(1)><script>&'
    breakdown = analyze(SERVING)
    row = dataclasses.replace(breakdown.total.top[0], op=hostile, kernel=hostile, family=hostile)
    step = dataclasses.replace(breakdown.steps[0], name=hostile, notes=(hostile,))
    total = dataclasses.replace(breakdown.total, top=(row,), families={hostile: breakdown.total.families["gemm"]})
    source = dataclasses.replace(breakdown.source, path=hostile, model_name=hostile, device_name=hostile)

    page = Page(
        render_html([dataclasses.replace(breakdown, source=source, steps=(step,), total=total, notes=(hostile,))])
    )

    assert not {"img", "script"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(hostile) >= 6


def test_what_could_not_be_measured_is_a_dash_and_no_zero():
    page = Page(render_html([Breakdown(source=Source(path="x"), steps=(StepBreakdown(name="s", window_ns=5),))]))

    assert page.text[page.text.index("HDBI") + 1] == "–"


def test_a_long_trace_draws_its_first_steps_and_says_so():
    steps = tuple(StepBreakdown(name=f"s{i}", window_ns=10, host=HostTime(python_ns=10)) for i in range(MAX_BARS + 5))

    page = Page(render_html([Breakdown(source=Source(path="x"), steps=steps)]))

    assert sum(a.get("height") == "16" for a in of(page, "rect")) == MAX_BARS
    assert any(f"The first {MAX_BARS} of {MAX_BARS + 5} steps." in text for text in page.text)
    assert "s104" in page.text  # the table has all


def test_several_breakdowns_share_a_page_written_whole(tmp_path):
    target = tmp_path / "page.html"

    write_html([analyze(SERVING)] * 2, target)

    assert len(of(Page(target.read_text(encoding="utf-8")), "article")) == 2
    assert list(tmp_path.iterdir()) == [target]


def test_a_disk_that_refuses_is_said_in_one_line(tmp_path):
    with pytest.raises(TaxbreakError, match=r"^[^\n]*missing[^\n]*cannot write[^\n]*$"):
        write_html([], tmp_path / "missing" / "page.html")
