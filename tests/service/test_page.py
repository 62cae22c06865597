import re
from html.parser import HTMLParser

import pytest

from taxbreak_vllm.model import Server
from taxbreak_vllm.service.analyzer import Analyzer
from taxbreak_vllm.service.page import Overview, render

EVIL = '<script>alert("x")</script>'


@pytest.fixture
def page(spool, results, clock):
    def page():
        return render(Overview.read(results, spool, window_s=900, now_ns=clock()))

    return page


@pytest.fixture
def turn(spool, results, analyze, clock):
    return Analyzer(spool, results, analyze, retention_ns=86400 * 10**9, now_ns=clock).turn


class Tags(HTMLParser):
    """Counts tags and notes those that are not closed in order."""

    def __init__(self, document):
        super().__init__()
        self.open, self.names, self.addresses = [], [], []
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "action")]
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_shows_phases_ops_steps_and_servers(page, spool, make_state, put, turn):
    spool.put_state(make_state())
    put("a", 1000)
    put("b", 3000)
    turn()

    document, _ = page()

    text = " ".join(re.sub(r"<[^>]*>", " ", document[document.index("<main>") :]).split())
    assert "decode 0.550 120.0 µs 40.0 µs 20.0 µs 100.0 µs 220.0 µs 400.0 µs 2" in text
    assert "aten::mm" in text
    assert "vllm-a 0 tiny recording 10" in text
    assert 'href="v1/taxbreak/steps/a"' in document


def test_the_unknown_is_a_dash_and_nothing_yet_is_said(page, put, turn):
    assert page()[0].count("nothing yet") == 4

    put("a", 1000, is_cpu=True)
    turn()

    assert re.search(r"60\.0 µs</td><td[^>]*>–</td><td[^>]*>0\.0 µs", page()[0])


def test_everything_from_outside_is_escaped(page, spool, make_state, put, turn):
    evil = Server(server_id="vllm-a", model_name=EVIL)
    spool.put_state(make_state(server=evil))
    put("a", server=evil)
    turn()

    document, _ = page()

    assert EVIL not in document
    assert "<b>nvjet" not in document
    assert "&lt;b&gt;nvjet &amp; co&lt;/b&gt;" in document
    assert Tags(document).names.count("script") == 1


def test_it_is_well_formed_and_asks_no_other_host(page, put, turn):
    put("a")
    turn()

    document, headers = page()

    tags = Tags(document)
    assert tags.open == []
    assert all(address.startswith(("v1/taxbreak/", "data:")) for address in tags.addresses)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    nonces = set(re.findall(r'nonce="([^"]+)"', document))
    assert len(nonces) == 1
    assert f"'nonce-{nonces.pop()}'" in headers["Content-Security-Policy"]
