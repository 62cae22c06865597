import logging
import threading

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Gauge, make_asgi_app
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.registry import Collector
from starlette.routing import Mount

from taxbreak_vllm.service.metrics.collector import TaxbreakCollector
from taxbreak_vllm.service.metrics.exposition import Exposition, append_metrics

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
GZIP = {"Accept-Encoding": "gzip"}


class Broken(Collector):
    def collect(self):
        yield from ()
        raise OSError("the disk is gone")


@pytest.fixture
def make_host():
    """An app with a page of metrics of its own, mounted as vLLM mounts it."""

    def make():
        registry = CollectorRegistry()
        Gauge("vllm:requests", "Theirs.", registry=registry).set(3)
        app = FastAPI()
        app.routes.append(Mount("/metrics", make_asgi_app(registry=registry)))
        return app

    return make


@pytest.fixture
def plain(make_host):
    return TestClient(make_host())


@pytest.fixture
def serve(make_host):
    def serve(collector, app=None, **options):
        app = app or make_host()
        append_metrics(app, Exposition(collector), **options)
        return TestClient(app)

    return serve


@pytest.fixture
def collector(settings, spool, clock):
    return TaxbreakCollector(settings.results_path, spool, window_ns=900 * 10**9, now_ns=clock)


@pytest.mark.parametrize("encoding", [GZIP, {}])
@pytest.mark.parametrize(("accept", "parse"), [({}, parse), (OPENMETRICS, parse_openmetrics)])
def test_ours_stand_behind_theirs_in_the_format_asked_for(serve, plain, collector, accept, parse, encoding):
    response = serve(collector).get("/metrics/", headers=accept | encoding)

    families = {family.name: family for family in parse(response.text)}
    theirs = plain.get("/metrics/", headers=accept)
    assert {"vllm:requests", "taxbreak_analysis_lag_seconds", "taxbreak_spool_bytes"} <= set(families)
    assert response.headers["content-type"] == theirs.headers["content-type"]
    assert response.text.startswith(theirs.text.removesuffix("# EOF\n"))


@pytest.mark.parametrize("accept", [{}, OPENMETRICS])
def test_where_ours_fail_theirs_go_out_as_they_are(serve, plain, caplog, accept):
    response = serve(Broken()).get("/metrics/", headers=accept)

    assert response.text == plain.get("/metrics/", headers=accept).text
    assert "the disk is gone" in caplog.text


def test_where_ours_hang_theirs_go_out_all_the_same(serve, plain, caplog):
    is_over = threading.Event()

    class Hanging(Collector):
        def collect(self):
            is_over.wait(60)
            yield from ()

    client = serve(Hanging(), patience_s=0.05)
    with caplog.at_level(logging.WARNING):
        found = [client.get("/metrics/").text for _ in range(3)]
    is_over.set()

    assert found == [plain.get("/metrics/").text] * 3
    assert "TimeoutError" in caplog.text


@pytest.mark.parametrize(("status", "media_type"), [(500, "text/plain"), (200, "application/json")])
def test_what_is_no_page_of_metrics_is_left_alone(serve, collector, status, media_type):
    app = FastAPI()

    @app.get("/metrics")
    def metrics():
        return PlainTextResponse("theirs", status_code=status, media_type=media_type)

    response = serve(collector, app).get("/metrics")

    assert (response.status_code, response.text) == (status, "theirs")


def test_their_fault_stays_theirs(serve, collector):
    app = FastAPI()

    @app.get("/metrics")
    def metrics():
        raise ZeroDivisionError("theirs")

    with pytest.raises(ZeroDivisionError, match="theirs"):
        serve(collector, app).get("/metrics")


def test_an_app_without_metrics_gets_none(serve, collector):
    assert serve(collector, FastAPI()).get("/metrics").status_code == 404


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=x", "text/plain; version=", "*/*", ";;,"])
def test_an_odd_accept_header_is_answered_in_plain_text(collector, accept):
    text, content_type = Exposition(collector).write(accept)

    assert content_type.startswith("text/plain")
    assert list(parse(text.decode()))
