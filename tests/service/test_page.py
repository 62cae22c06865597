"""The live page: the window's figures as the API gives them, and what only a running sidecar has."""

import dataclasses
import re
import time
from html.parser import HTMLParser

import pytest

from taxbreak_vllm.model.breakdown import Breakdown, Source
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState
from taxbreak_vllm.model.step import Phase, Server
from taxbreak_vllm.service.http.page import page, read_article
from taxbreak_vllm.service.processes.analyzer import Analyzer

EVIL = '<script>alert("x")</script>'
VOID = {"meta", "link", "input", "br"}


@pytest.fixture
def article(spool, results, clock):
    def article(*, has_key=False):
        return read_article(results, spool, window_s=900, has_key=has_key, now_ns=clock())

    return article


@pytest.fixture
def show(article):
    return lambda **options: page(article(**options))


@pytest.fixture
def turn(spool, results, analyze, clock):
    return Analyzer(spool, results, analyze, retention_ns=86400 * 10**9, now_ns=clock).turn


class Tags(HTMLParser):
    """Checks that tags close in order; collects names, attributes and text."""

    def __init__(self, document):
        super().__init__()
        self.open, self.names, self.attributes, self.texts = [], [], [], []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def test_what_a_step_lacks_is_said_beside_what_the_recording_lacks(article, results, make_info, make_step):
    step = dataclasses.replace(make_step(), hdbi=None, notes=("too little was recorded",))
    results.add_step("a", make_info("a"), Breakdown(source=Source(), steps=(step,), notes=("of the file",)), now_ns=0)

    assert article().notes == ("of the file", "too little was recorded")


def test_it_shows_phases_taxes_steps_and_servers_per_step(show, spool, make_state, put, turn):
    spool.put_state(make_state())
    put("a", 1000)
    put("b", 3000)
    turn()

    text = Tags(show()[0]).text

    assert "decode 0.550 55.0% 55.0% 25.0% 400.0 µs 5 2" in text
    assert "decode 120.0 µs 80.0 µs 40.0 µs 0.0 µs 20.0 µs 8.0 µs 180.0 µs 100.0 µs" in text
    assert "vllm-a 0 tiny recording 10" in text
    assert 'href="v1/taxbreak/steps/a"' in show()[0]


def test_the_history_has_every_step_of_the_window_newest_first(article, put, turn, clock):
    put("a", 1)
    clock.sleep_s(1)
    put("b", 2, phase=Phase.PREFILL)
    turn()

    points = article().history

    assert [(point.name, point.phase, point.delta_ft_ns, point.exposed_ns) for point in points] == [
        ("b", "prefill", 120, 100),
        ("a", "decode", 60, 50),
    ]


def test_the_unknown_is_a_dash_and_nothing_yet_is_said(show, put, turn):
    assert Tags(show()[0]).text.count("nothing yet") == 8

    put("a", 1000, is_cpu=True)
    turn()

    assert "decode 60.0 µs 40.0 µs – – 0.0 µs" in Tags(show()[0]).text


def test_advice_stands_on_top_and_says_why_there_is_none(show, put, turn):
    put("a", 1000)
    turn()

    text = Tags(show()[0]).text

    assert text.index("No advice yet") < text.index("Is it the host?")
    assert "of the kernels have no launch event" in text


def test_calibrated_steps_are_advised_on(article, put, turn, results, analyze, make_info, clock):
    capture = put("a", 1000)
    breakdown = analyze(capture)
    calibrated = dataclasses.replace(breakdown.calibration, dilation=1.0, residual=0.0, state="calibrated")
    covered = dataclasses.replace(breakdown.coverage, linked=breakdown.coverage.kernels, events=99)
    breakdown = dataclasses.replace(breakdown, calibration=calibrated, coverage=covered)
    results.add_step("a", make_info("a"), breakdown, now_ns=clock())

    assert [(advice.rule, advice.at_most_ns) for advice in article().advice.advice][:1] == [("batch-size", 46_875)]


def test_a_form_asks_for_steps_with_the_key_where_there_is_one(show, spool, make_state):
    spool.put_state(make_state())
    spool.put_state(make_state(server=Server(server_id="vllm-b")))

    fields = {tag.get("name") for tag in Tags(show(has_key=True)[0]).attributes if "name" in tag}

    assert {"steps", "phase", "timeout_s", "server_id", "key"} <= fields
    assert 'name="key"' not in show()[0]


def test_everything_from_outside_is_escaped(show, spool, make_state, put, turn):
    evil = Server(server_id="vllm-a", model_name=EVIL)
    spool.put_state(make_state(server=evil))
    put("a", server=evil)
    turn()

    document, _ = show()

    assert EVIL not in document
    assert "<b>nvjet" not in document
    assert "&lt;b&gt;nvjet &amp; co&lt;/b&gt;" in document


def test_it_is_well_formed_and_only_its_own_parts_may_run(show, put, turn):
    put("a")
    turn()

    document, headers = show()

    tags = Tags(document)
    addresses = [tag[name] for tag in tags.attributes for name in ("href", "src", "action") if name in tag]
    assert all(address.startswith(("v1/taxbreak/", "data:", "#")) for address in addresses)
    assert not [name for tag in tags.attributes for name in tag if name.startswith("on") or name == "style"]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    nonces = set(re.findall(r'nonce="([^"]+)"', document))
    assert len(nonces) == 1
    assert f"script-src 'nonce-{nonces.pop()}'" in policy


def test_it_is_quick_over_many_stored_steps(article, put, turn, analyze, results, make_info, clock):
    breakdown = analyze(put("a", 1000))
    for number in range(500):
        results.add_step(f"s{number}", make_info(f"s{number}"), breakdown, now_ns=clock())
    page(article())

    started_s = time.process_time()
    document, _ = page(article())
    took_s = time.process_time() - started_s

    assert ">500<" in document
    assert took_s < 0.5  # of this process alone; a tenth of it as a rule


def test_a_step_whose_breakdown_another_version_wrote_otherwise_is_left_out_of_the_advice(turn, put, results, article):
    put("old", 10**6)
    put("new", 10**6)
    turn()
    with_both = article()
    results._db.execute(
        "UPDATE breakdowns SET breakdown = ? WHERE seq = (SELECT seq FROM steps WHERE step_id = 'old')", (b"{}",)
    )

    assert article().num_steps == with_both.num_steps == 2
    assert article().total == with_both.total


def test_what_one_should_know_of_a_servers_recording_is_on_the_page(spool, make_state, show, clock):
    spool.put_state(make_state(notes=("this CUPTI is old & wrong",)))

    document, _ = show()
    clock.sleep_s(31)
    later, _ = show()

    assert "vllm-a, rank 0: this CUPTI is old &amp; wrong" in document
    assert "this CUPTI is old" not in later


def test_what_an_iteration_went_to_is_a_bar_for_each_engine_whose_workers_tell(show, spool, clock):
    loop = EngineState(
        server_id="vllm-a",
        engine="0",
        model_name="tiny",
        updated_unix_ns=clock(),
        num_iterations=1000,
        iterations_ns=4 * 10**9,
        worker_ns=2 * 10**9,
        exposed_ns={EnginePart.SCHEDULE: 5 * 10**8, EnginePart.LOOP: 10**7},
        between_ns={Between.IPC_RETURN: 49 * 10**7, Between.NO_WORK: 10**9},
    )
    spool.put_engine_state(loop)
    spool.put_engine_state(dataclasses.replace(loop, engine="1", works_ahead=True, exposed_ns={}, between_ns={}))

    tags = Tags(show()[0])

    (bar,) = [a["aria-label"] for a in tags.attributes if "bar" in a.get("class", "") and "schedule" in a["aria-label"]]
    assert bar == (
        "the worker's step 2.00 ms (66.7%); engine: schedule 500.0 µs (16.7%);"
        " result on its way to the engine 490.0 µs (16.3%); not explained 10.0 µs (0.3%)"
    )
    assert [a["data-engine"] for a in tags.attributes if "data-engine" in a] == ["0", "1"]
    assert any("works a step ahead" in text for text in tags.texts)
