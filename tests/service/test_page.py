"""The live page: the window's figures as the API gives them, and what only a running sidecar has."""

import dataclasses
import re
import time
from html.parser import HTMLParser

import pytest
from live_states import ahead, engine_state, frontend_state, waterfall

from taxbreak_vllm.model.breakdown import Breakdown, ExposedTax, Source
from taxbreak_vllm.model.ceilings import Ceilings, CeilingSource
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.frontend import Stage
from taxbreak_vllm.model.limit import Bar, Bound, StepLimit
from taxbreak_vllm.model.step import Phase, Server
from taxbreak_vllm.service.http.article import read_article, read_step_article
from taxbreak_vllm.service.http.page import page
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.processes.analyzer import Analyzer

SERVER = Server(server_id="vllm-a", engine="0", rank=0, model_name="tiny")
URL = "http://gpu-7:9797"
EVIL = '<script>alert("x")</script>'
H100 = Ceilings(
    device_name="NVIDIA H100 80GB HBM3",
    sources={"bf16": CeilingSource.TABLE, "bytes": CeilingSource.TABLE},
    origins={CeilingSource.TABLE: "H100 datasheet"},
)
VOID = {"meta", "link", "input", "br"}


@pytest.fixture
def article(spool, results, clock):
    def article(*, url=URL, has_key=False, **named):
        return read_article(results, spool, window_s=900, url=url, has_key=has_key, now_ns=clock(), **named)

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


def test_the_bar_of_a_phase_is_shown_with_its_shares_ceilings_and_reasons(show, results, make_info, make_step):
    bar = Bar(window_ns=200, limit_ns=60, above_ns=50, exposed_ns={"delta_ft": 50}, other_idle_ns=40)
    limit = StepLimit(
        flops=10**7, bytes=50_000, bar=bar, compute_ns=20, memory_ns=60, floor_ns=(60, 60), bound=Bound.MEMORY,
        mfu=0.1, mbu=0.3, ceilings=H100,
    )  # fmt: skip
    told = dataclasses.replace(make_step(), limit=limit)
    untold = dataclasses.replace(make_step(phase=Phase.PREFILL), limit_reason="its worker says nothing of its model")
    for name, step in (("a", told), ("b", untold)):
        results.add_step(name, make_info(name, phase=step.phase), Breakdown(source=Source(), steps=(step,)), now_ns=0)

    tags = Tags(show()[0])

    assert "How far from the hardware's limit?" in tags.text
    assert "0.1 µs 0.1 µs 10.0% 30.0% memory 90.9 TFLOP/s 455 GB/s 1" in tags.text
    assert "(55.0%) – – – – – – – 1" in tags.text
    assert "H100 datasheet." in tags.text
    assert "Its worker says nothing of its model." in tags.text
    labels = [attributes["aria-label"] for attributes in tags.attributes if attributes.get("class") == "bar"]
    assert any(
        label.startswith("hard limit 0.1 µs (30.0%); kernels above the limit 0.1 µs (25.0%); waits: framework (ΔFT)")
        for label in labels
    )


def test_it_shows_phases_taxes_steps_and_servers_per_step(show, spool, make_state, put, turn):
    spool.put_state(make_state())
    put("a", 1000)
    put("b", 3000)
    turn()

    text = Tags(show()[0]).text

    assert "decode 0.550 – 55.0% 55.0% 25.0% 400.0 µs 5 2" in text
    assert "decode 120.0 µs 40.0 µs 20.0 µs 180.0 µs" in text
    assert (
        "380.0 µs waited for 26.3% of it 240.0 µs waited for 33.3% of it 60.0 µs waited for 0.0% of it"
        " 40.0 µs waited for 20.0% of it 40.0 µs waited for 30.0% of it"
    ) in text
    assert "vllm-a 0 tiny recording 10" in text
    assert 'href="steps/a"' in show()[0]


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
    assert Tags(show()[0]).text.count("nothing yet") == 9

    put("a", 1000, is_cpu=True)
    turn()

    assert "decode 60.0 µs – 0.0 µs 60.0 µs" in Tags(show()[0]).text


def test_the_command_to_record_names_the_server_asked_and_the_key_it_wants(show, several):
    asked = "taxbreak capture --url http://gpu-7:9797 --server-id vllm-b --steps 4"

    assert asked in Tags(show(server_id="vllm-b")[0]).text
    assert f"TAXBREAK_API_KEY=KEY {asked}" in Tags(show(server_id="vllm-b", has_key=True)[0]).text
    assert "--url 'http://[::1]:9797' --server-id" in Tags(show(server_id="vllm-b", url="http://[::1]:9797")[0]).text


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

    assert [(card.advice.rule, card.advice.at_most_ns) for card in article().advice.cards][:1] == [
        ("batch-size", 46_875)
    ]


def test_a_form_asks_for_steps_and_one_can_log_out_where_there_is_a_key(show, spool, make_state):
    spool.put_state(make_state())
    spool.put_state(make_state(server=Server(server_id="vllm-b")))

    fields = {tag["name"]: tag.get("value") for tag in Tags(show(has_key=True)[0]).attributes if "name" in tag}

    assert {"steps", "phase", "timeout_s", "logout"} <= fields.keys()
    assert fields["server_id"] == "vllm-b"
    assert 'name="logout"' not in show()[0]


def test_whoever_may_only_look_is_told_why_they_cannot_record(article):
    shown = article(has_key=True)
    document, _ = page(dataclasses.replace(shown, live=dataclasses.replace(shown.live, why_read_only="the key reads")))

    assert "You are here to look only: the key reads." in Tags(document).text
    assert 'id="capture"' not in document


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
    assert all(address.startswith(("steps/", "data:", "#")) for address in addresses)
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


def test_a_note_that_several_workers_have_stands_once(spool, make_state, show):
    for rank in range(3):
        spool.put_state(make_state(server=dataclasses.replace(SERVER, rank=rank), notes=("an old CUPTI",)))

    text = Tags(show()[0]).text

    assert text.count("an old CUPTI") == 1
    assert "3 workers: an old CUPTI" in text


SLOW_TOKENIZER = [waterfall(number, render=41, prefill=21) for number in range(20)]


@pytest.fixture
def serve(spool, clock):
    """A server with this engine and an API server with these requests; either may be missing."""

    def serve(engine=None, waterfalls=None, **fields):
        if engine is not None:
            spool.put_engine_state(dataclasses.replace(engine, updated_unix_ns=clock()))
        if waterfalls is not None:
            spool.put_frontend_state(frontend_state(*waterfalls, updated_unix_ns=clock(), **fields))
            spool.put_waterfalls("vllm-a", fields.get("api", "0"), waterfalls)

    return serve


def bars(tags, word):
    """What the bars that have this word say of themselves."""
    return [a["aria-label"] for a in tags.attributes if a.get("class") == "bar" and word in a["aria-label"]]


def test_the_device_s_second_is_one_bar_from_client_to_kernel_for_each_engine_that_tells(show, serve, put, turn):
    put("a", 1000)
    turn()
    serve(
        engine_state(
            worker_ms=4,
            exposed={EnginePart.SCHEDULE: 2, EnginePart.LOOP: 0.1},
            between={Between.IPC_RETURN: 0.9, Between.FRONTEND: 1, Between.NO_WORK: 2},
        )
    )
    serve(ahead(engine="1"))

    tags = Tags(show()[0])

    (bar,) = bars(tags, "schedule")
    assert bar == (
        "no request 2.00 ms (20.0%); a request is in the API server 1.00 ms (10.0%); engine: schedule 2.00 ms (20.0%);"
        " not explained 100.0 µs (1.0%); result on its way to the engine 900.0 µs (9.0%);"
        " worker: Python, op dispatch (ΔFT) 842.1 µs (8.4%); worker: launch calls (ΔKT) 84.2 µs (0.8%);"
        " worker: other runtime calls 126.3 µs (1.3%); launched, not begun 631.6 µs (6.3%);"
        " the device works 2.32 ms (23.2%)"
    )
    assert sum(float(share) for share in re.findall(r"\(([\d.]+)%\)", bar)) == pytest.approx(100, abs=0.5)
    assert [a["data-engine"] for a in tags.attributes if "data-engine" in a] == ["0", "1"]
    assert any("works a step ahead" in text for text in tags.texts)
    assert "the device works 2.32 ms (23.2%) 8.00 ms 1,000" in tags.text


def test_the_bar_s_parts_stand_side_by_side_and_fill_it(show, serve):
    serve(engine_state(exposed={EnginePart.SCHEDULE: 2}, between={Between.NO_WORK: 2}))

    document = show()[0]

    svg = document[document.index("data-engine") :]
    rects = re.findall(r'<rect class="k-\S+" x="([\d.]+)" width="([\d.]+)"', svg[: svg.index("</svg>")])
    assert [float(x) for x, _ in rects] == pytest.approx([0, 200, 400], abs=0.02)
    assert sum(float(width) for _, width in rects) == pytest.approx(1000, abs=0.05)


def test_another_server_s_steps_do_not_divide_this_one_s_second(show, serve, put, turn):
    put("a", 1000, server=Server(server_id="vllm-b", model_name="tiny"))
    turn()
    serve(engine_state())

    (bar,) = bars(Tags(show()[0]), "worker")

    assert "the worker's step, not recorded yet 6.00 ms (99.8%)" in bar


def test_requests_are_waterfalls_with_the_first_byte_marked_and_a_table_of_their_stages(show, serve):
    slow = waterfall(0xABCDEF12, started_unix_ns=10**9, render=41, prefill=21, decode=400)
    serve(waterfalls=[*SLOW_TOKENIZER, slow])

    document, _ = show()
    tags = Tags(document)

    (median,) = bars(tags, "median")
    assert median.startswith("median: receive 100.0 µs; parse 100.0 µs; render: template, tokenizer 41.00 ms;")
    assert median.endswith("; first byte after 62.90 ms")
    (late,) = bars(tags, "abcdef12")
    assert "decode 400.0 ms" in late
    assert "render: template, tokenizer 41.00 ms 41.00 ms" in tags.text
    assert "62.90 ms 102.9 ms of 21" in tags.text
    (mark, _) = re.findall(r'<rect class="mark" x="([\d.]+)"', document)
    assert float(mark) == pytest.approx(1000 * 62.9 / 462.9, abs=0.01)
    tables = [tag.get("aria-label") for tag in tags.attributes]
    assert "Stages of these requests" in tables


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (None, "No API server is followed: name the plugin on the server (VLLM_PLUGINS=taxbreak)"),
        ({}, "No request has ended yet."),
        ({"num_unknown": 1}, "The server keeps no times of its requests"),
    ],
)
def test_without_requests_the_reason_stands_there(show, serve, fields, why):
    serve(engine_state(), *([] if fields is None else [()]), **(fields or {}))

    assert why in Tags(show()[0]).text


def test_a_slow_tokenizer_is_the_first_sentence_of_the_page(show, serve, put, turn):
    put("a", 1000)
    turn()
    serve(engine_state(exposed={EnginePart.SCHEDULE: 0.4}), SLOW_TOKENIZER)

    tags = Tags(show()[0])

    sentence = (
        "Requests wait 41.00 ms of the 62.90 ms to their first token in the tokenizer (render) of the API server,"
    )
    lead, _, after = tags.text.partition("Skip to the figures taxbreak tiny ")[2].partition(" To try first: ")
    assert lead.startswith(sentence)
    assert after.startswith("--api-server-count 2 or more, which saves at most 41.20 ms of a request (40.0%).")


def test_advice_on_what_lies_around_the_steps_stands_with_that_on_the_steps(show, article, serve, put, turn):
    put("a", 1000)
    turn()
    serve(engine_state(between={Between.IPC_RETURN: 3}), SLOW_TOKENIZER)

    assert [card.advice.rule for card in article().advice.cards] == ["before-the-engine", "work-ahead"]
    assert any("kernels have no launch event" in reason for reason in article().advice.reasons)
    assert "2 changes worth trying" in Tags(show()[0]).text


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (None, "is not known yet: no server writes into this spool"),
        (engine_state(num=3), "is not known yet: 3 iterations so far, and it takes 100"),
        (ahead(), "is not known yet: the engine works a step ahead"),
        (engine_state(between={Between.NO_WORK: 900}), "Nothing is held up: the server had no request for 99.3%"),
        (engine_state(exposed={EnginePart.SCHEDULE: 5}), "for the engine's loop: of each 11.00 ms"),
        (engine_state(exposed={}, between={Between.IPC_RETURN: 0.1}), "worker's host work: of each 6.11 ms"),
    ],
)
def test_the_page_begins_with_what_the_engine_tells(show, serve, put, turn, engine, words):
    put("a", 1000)
    turn()
    serve(engine)

    assert words in Tags(show()[0]).text.partition("refresh every")[0]


def test_a_device_that_works_is_said_to_be_well(show, serve, results, make_info, make_step, clock):
    step = make_step(1000)
    idle = dataclasses.replace(step.device.idle, host_ns=10_000, queue_ns=0, edge_ns=0)
    device = dataclasses.replace(step.device, window_ns=120_000, idle_ns=10_000, idle=idle)
    step = dataclasses.replace(step, device=device, exposed=ExposedTax(delta_ft_ns=10_000))
    source = Source(server_id="vllm-a", model_name="tiny")
    results.add_step("a", make_info("a"), Breakdown(source=source, steps=(step,)), now_ns=clock())
    serve(engine_state(worker_ms=9.9))

    assert (
        "All is well on the host: while there are requests, the device works 91.6% of the time." in Tags(show()[0]).text
    )


def test_the_server_s_hdbi_stands_beside_hdbi_with_the_reason_where_there_is_none(show, serve, put, turn):
    put("a", 10_000)
    turn()
    assert "Decode: no engine of this model runs that tells of its loop." in Tags(show()[0]).text

    serve(engine_state(exposed={EnginePart.SCHEDULE: 2}))

    text = Tags(show()[0]).text
    assert "decode 0.550 0.275 55.0%" in text
    assert "beside the host's work: 0.275 over all iterations." in text


@pytest.mark.parametrize("name", ["state.json", "requests.json"])
def test_an_api_folder_that_cannot_be_read_costs_nothing_else(show, serve, spool, name):
    serve(engine_state(), SLOW_TOKENIZER)
    (spool.api_dir("vllm-a", "0") / name).write_bytes(b"\xff{")

    assert "Where the device's second went" in Tags(show()[0]).text


def test_times_that_cannot_be_are_drawn_as_none(show, serve):
    odd = dataclasses.replace(waterfall(), stages_ns=dict.fromkeys(Stage, -5), total_ns=-60, ttft_ns=-1)
    serve(engine_state(exposed={EnginePart.LOOP: -1}), [odd])

    assert "works a step ahead" in Tags(show()[0]).text


OTHER = Server(server_id="vllm-b", engine="0", rank=0, model_name="small")
AGAIN = Server(server_id="vllm-c", engine="0", rank=0, model_name="tiny")


@pytest.fixture
def several(spool, make_state, put, turn, clock):
    """Two models and two servers of one of them, one of which has stopped, each with steps of its own size."""
    for scale, server in ((1000, SERVER), (3000, AGAIN), (7000, OTHER)):
        put(f"of-{server.server_id}", scale, server=server)
    turn()
    spool.put_state(make_state(started_ns=clock() - 2))
    spool.put_state(make_state(server=OTHER, started_ns=clock() - 1))


def test_of_several_models_and_servers_one_is_shown_and_never_their_sum(article, several):
    names = [("tiny", "vllm-a"), ("tiny", "vllm-c"), ("small", "vllm-b")]
    shown = {server: article(model_name=model, server_id=server) for model, server in names}

    assert [(shown[s].num_steps, shown[s].total.window_ns) for _, s in names] == [
        (1, 2 * 10**5),
        (1, 6 * 10**5),
        (1, 14 * 10**5),
    ]
    assert [step.name for step in shown["vllm-c"].steps] == ["of-vllm-c"]
    assert [point.name for point in shown["vllm-b"].history] == ["of-vllm-b"]
    assert article().live.server_id == "vllm-b"  # which started last
    assert article(model_name="tiny").live.server_id == "vllm-a"  # the other has stopped


def test_links_lead_to_every_model_and_server_and_there_are_none_to_a_single_one(show, put, turn, several):
    tags = Tags(show(server_id="vllm-c")[0])

    links = {a["href"]: a.get("aria-current") for a in tags.attributes if "model=" in a.get("href", "")}
    assert links == {
        "?model=small&server=vllm-b": None,
        "?model=tiny&server=vllm-a": None,
        "?model=tiny&server=vllm-c": "page",
    }
    assert "vllm-c (stopped)" in tags.text


def test_a_single_server_needs_no_choice(show, spool, make_state, put, turn):
    spool.put_state(make_state())
    put("a")
    turn()

    assert "?model=" not in show()[0]


def test_a_server_that_is_named_and_not_there_is_not_replaced_by_another(article, several):
    gone = article(model_name="tiny", server_id="vllm-gone")

    assert (gone.num_steps, gone.steps, gone.live.server_id) == (0, (), "vllm-gone")
    assert gone.advice.title == "No advice yet"
    assert [one.server_id for one in gone.live.choice if one.is_chosen] == ["vllm-gone"]


def test_a_name_in_the_address_is_text(show, several):
    document, _ = show(model_name=EVIL, server_id=EVIL)

    assert EVIL not in document
    assert "&lt;script&gt;alert" in document


def test_what_is_around_the_steps_of_a_stopped_server_is_not_that_of_another(article, serve, several):
    serve(dataclasses.replace(engine_state(between={Between.IPC_RETURN: 3}), server_id="vllm-b"))

    assert "work-ahead" in {card.advice.rule for card in article(server_id="vllm-b").advice.cards}
    assert article(server_id="vllm-c").advice.cards == ()
    assert article(server_id="vllm-c").live.seconds == ()


@pytest.fixture
def step(spool, results):
    return lambda step_id: page(read_step_article(results, spool, step_id), root="../")[0]


def test_a_step_has_a_page_with_its_phase_size_time_and_links(step, put, turn):
    put("a", 1000)
    turn()

    tags = Tags(step("a"))

    assert (
        "This decode took 200.0 µs while it was recorded; for 50.0 µs of it the device waited for the host."
        in tags.text
    )
    assert "2023-11-14 22:13:20 UTC · 1 request · 4 output tokens · op by op · server vllm-a" in tags.text
    assert {a["href"] for a in tags.attributes if "href" in a} >= {
        "../?model=tiny&server=vllm-a#a0-steps",
        "../v1/taxbreak/steps/a",
        "../v1/taxbreak/steps/a/trace",
    }


def test_a_step_whose_trace_is_gone_keeps_its_page(step, put, turn, spool):
    capture = put("a", 1000)
    turn()
    spool.remove(capture)

    document = step("a")

    assert "This decode took 200.0 µs" in document
    assert "/trace" not in "".join(a.get("href", "") for a in Tags(document).attributes)


@pytest.mark.parametrize(
    ("step_id", "why"), [("never", "no such step"), ("bad", "set aside"), ("new", "still being analyzed")]
)
def test_a_step_that_is_not_there_has_a_page_that_says_why(spool, results, put, turn, step_id, why):
    put("bad", trace=b"junk")
    turn()
    put("new")

    with pytest.raises(Problem, match=why) as found:
        read_step_article(results, spool, step_id)
    assert found.value.status == 404
