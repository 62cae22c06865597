"""The file of `analyze --html`: the sidecar's page without its live parts; it opens offline and trusts no trace."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.output.html import article_of, write_html
from taxbreak_vllm.output.page.render import render
from taxbreak_vllm.output.text.breakdown import summary_lines
from taxbreak_vllm.taxes.recording import Recording

SERVING = Path(__file__).parents[1] / "data" / "serving.json"
VOID = {"meta", "link", "br", "input"}


class Page(HTMLParser):
    """Checks that elements nest; collects their attributes and the text."""

    def __init__(self, document):
        super().__init__()
        self.open, self.elements, self.texts, self.scripts = [], [], [], []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    @property
    def data(self):
        return msgspec.json.decode(self.scripts[0])


def article(path, breakdown=None):
    with Recording.open(path) as recording:
        return article_of(Findings(recording, breakdown))


def rendered(articles):
    return render(articles)[0]


@pytest.fixture(scope="module")
def page():
    return Page(rendered([article(SERVING)]))


def of(page, tag):
    return [attributes for name, attributes in page.elements if name == tag]


def test_the_page_names_no_other_host_and_lets_only_its_own_parts_run(page):
    links = [a[name] for _, a in page.elements for name in ("href", "src", "action") if name in a]
    (policy,) = [a["content"] for a in of(page, "meta") if a.get("http-equiv") == "Content-Security-Policy"]

    assert links == ["data:,", "#main"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert {a["nonce"] for tag in ("style", "script") for a in of(page, tag)} == set(
        re.findall(r"nonce-([^']+)", policy)
    )


def test_the_page_has_no_live_part(page):
    assert of(page, "form") == []
    assert page.data["is_live"] is False


def test_the_page_has_advice_first_then_figures_timelines_chains_and_trust(page):
    headings = [text for text in page.texts if text in {
        "4 changes worth trying, if the plain step is long enough",
        *("Is it the host?", "Step by step", "A step, instant by instant", "Where it goes"),
        *("Kernels that always run one after another", "Can these figures be trusted?", "Steps"),
    }]  # fmt: skip

    assert headings == [
        *(
            "4 changes worth trying, if the plain step is long enough",
            "Is it the host?",
            "Step by step",
            "A step, instant by instant",
            "Where it goes",
        ),
        *("Kernels that always run one after another", "Can these figures be trusted?", "Steps"),
    ]


def test_the_figures_are_those_of_the_breakdown(page):
    breakdown = analyze(SERVING)

    assert [point["exposed_ns"] for point in page.data["history"]] == [s.device.idle.host_ns for s in breakdown.steps]
    assert [timeline["step"] for timeline in page.data["timelines"]] == [step.name for step in breakdown.steps]
    assert page.data["fusion"]["launches"] == 19
    assert set(breakdown.notes) <= set(page.texts)
    assert set(breakdown.total.families) <= set(page.texts)
    assert {f"{step.hdbi:.3f}" for step in breakdown.steps} <= set(page.texts)


def test_its_flame_graph_sums_to_delta_ft(page):
    stacks = page.data["stacks"]

    assert sum(stacks["delta_ft_ns"]) == analyze(SERVING).total.taxes.delta_ft_ns
    assert stacks["title"] == "serving.json"


def test_a_calibrated_trace_is_advised_on():
    breakdown = with_plain_step(analyze(SERVING), analyze(SERVING).total.window_ns // 3)

    shown = article(SERVING, breakdown)

    assert {card.advice.phase for card in shown.advice.cards} == {"prefill", "decode"}
    assert any(text.startswith("Wins at most") for text in Page(rendered([shown])).texts)


def test_a_trace_whose_plain_step_nobody_timed_is_advised_on_with_an_if_and_what_would_settle_it():
    texts = " ".join(Page(rendered([article(SERVING)])).texts)

    assert "If the plain step is above" in texts
    assert "time these steps without a profiler, then: taxbreak analyze … --plain-ms MS" in texts


def test_a_bar_says_its_parts_and_draws_them_in_proportion(page):
    (prefill, *_) = [a["aria-label"] for a in of(page, "svg") if a.get("class") == "bar"]
    host = analyze(SERVING).steps[0].host

    assert prefill.startswith(f"Python {host.python_ns / 1e3:.1f} µs ({host.python_ns / 417_000:.1%})")
    widths = [float(a["width"]) for a in of(page, "rect") if a.get("height") == "14"]
    assert widths[0] == pytest.approx(1000 * host.python_ns / 417_000, abs=0.01)


def test_whatever_a_trace_says_is_text():
    hostile = '"><img src=x onerror=alert(1)></script><script>&'
    shown = article(SERVING)
    row = dataclasses.replace(shown.total.top[0], op=hostile, kernel=hostile, family=hostile)
    total = dataclasses.replace(shown.total, top=(row,), families={hostile: shown.total.families["gemm"]})
    timeline = dataclasses.replace(shown.timelines[0], names=(hostile,), step=hostile)

    page = Page(
        rendered(
            [
                dataclasses.replace(
                    shown, title=hostile, facts=(hostile,), total=total, notes=(hostile,), timelines=(timeline,)
                )
            ]
        )
    )

    assert "img" not in {tag for tag, _ in page.elements}
    assert len(of(page, "script")) == 2  # data and ours
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.data["timelines"][0]["names"] == [hostile]


def test_it_begins_with_the_sentence_of_the_command_line():
    shown = article(SERVING)
    (sentence,) = [line for line in summary_lines(analyze(SERVING)) if line.startswith("The device waits ")]

    page = Page(rendered([shown]))

    assert shown.lead == sentence
    assert sentence in page.texts


def test_several_traces_share_one_page():
    shown = article(SERVING)

    page = Page(rendered([shown, shown]))

    assert len(of(page, "article")) == 2
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))


def test_it_is_written_whole_or_not_at_all(tmp_path):
    write_html([analyze(SERVING)], tmp_path / "page.html")
    with pytest.raises(TaxbreakError):
        write_html([analyze(SERVING)], tmp_path / "none" / "page.html")

    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
