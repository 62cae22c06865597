import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from inspect import iscoroutinefunction

import httpx
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from taxbreak_vllm.model.errors import SpoolError, TaxbreakError
from taxbreak_vllm.service.app import create_app, serve
from taxbreak_vllm.service.processes.supervisor import Supervisor


@pytest.fixture
def open_app(settings, analyzer_command):
    """Enter a sidecar's lifespan with the fake analysis."""
    opened = []

    def open_app(**changes):
        app = create_app(settings.model_copy(update=changes), supervisor=Supervisor(analyzer_command))
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return client

    yield open_app
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def sidecar(tmp_path, settings):
    """Run `serve` as a process of its own; gives the process and its address."""
    script = (
        "import sys; from pathlib import Path; from taxbreak_vllm.service.app import serve\n"
        "from taxbreak_vllm.settings import Settings\n"
        "serve(Settings(spool=Path(sys.argv[1]), port=0))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(settings.spool)], stderr=subprocess.PIPE, text=True)
    with process:
        (url,) = re.findall(r"http://[\d.:]+", process.stderr.readline())
        yield process, url
        process.kill()


def is_claim_free(spool):
    with spool.claim() as is_free:
        return is_free


def test_a_capture_becomes_metrics(open_app, put, until):
    client = open_app()
    put("a")

    def sampled():
        samples = [s for family in parse(client.get("/metrics").text) for s in family.samples]
        return [s.value for s in samples if s.name == "taxbreak_sampled_steps_total"]

    until(lambda: sampled() == [1])
    assert client.get("/v1/taxbreak/steps").json()["steps"][0]["step_id"] == "a"


def test_the_lifespan_ends_the_analyzer(open_app, spool, until):
    client = open_app()
    until(lambda: not is_claim_free(spool))

    client.__exit__(None, None, None)

    assert is_claim_free(spool)
    client.__enter__()


def test_metrics_speak_both_formats(open_app):
    client = open_app()

    plain = client.get("/metrics", headers={"Accept": "text/plain"})
    openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert list(parse(plain.text))
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert list(parse_openmetrics(openmetrics.text))


def test_health_schema_and_nothing_from_other_hosts(open_app):
    client = open_app()

    assert client.get("/healthz").text == "ok\n"
    assert "/v1/taxbreak/breakdown" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 404


def test_only_health_is_answered_on_the_loop_and_all_else_by_threads(settings):
    """So that nothing that reads the disk or adds up steps can keep the loop from it."""
    routes = [route for route in create_app(settings).routes if isinstance(route, APIRoute)]

    on_loop = {route.path for route in routes if iscoroutinefunction(route.endpoint)}
    waiting_for_a_child = {
        f"/v1/taxbreak/steps/{{step_id}}/{what}" for what in ("timeline", "fusion", "stacks", "profile")
    }
    assert on_loop == {"/healthz", "/v1/taxbreak/whatif"} | waiting_for_a_child
    assert len(routes) > 10


def test_health_is_answered_while_every_thread_is_taken(open_app, settings):
    """With more requests under way than there are threads, each of them waiting for something."""
    client = open_app()
    is_over = threading.Event()

    @client.app.get("/wait")
    def wait():
        is_over.wait(60)

    with ThreadPoolExecutor(64) as pool:
        waiting = [pool.submit(client.get, "/wait") for _ in range(64)]
        assert client.get("/healthz").text == "ok\n"
        assert not any(future.done() for future in waiting)
        is_over.set()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/none", 404), ("POST", "/v1/taxbreak/status", 405)])
def test_errors_outside_the_routes_are_problems_too(open_app, method, path, status):
    response = open_app().request(method, path)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


def test_metrics_over_results_that_broke_are_a_problem(open_app, tmp_path):
    (tmp_path / "junk").write_bytes(b"junk" * 1000)

    response = open_app(results=tmp_path / "junk").get("/metrics")

    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_sidecar_and_analyzer_in_order(sidecar, spool, until, number):
    process, url = sidecar
    assert httpx.get(f"{url}/healthz", timeout=60).text == "ok\n"
    until(lambda: not is_claim_free(spool))

    os.kill(process.pid, number)

    assert process.wait(timeout=60) == 0
    assert is_claim_free(spool)
    assert process.stderr.read() == ""


def test_killed_it_takes_its_analyzer_along(sidecar, spool, until):
    process, _ = sidecar
    until(lambda: not is_claim_free(spool))

    process.kill()
    process.wait()

    until(lambda: is_claim_free(spool))


def test_a_port_in_use_is_said_in_one_line(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(TaxbreakError, match=rf"127\.0\.0\.1:{port}: cannot listen: .*TAXBREAK_PORT"):
            serve(settings.model_copy(update={"port": port}))


def test_a_spool_that_cannot_be_written_is_said_in_one_line(settings, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(TaxbreakError, match=r"file/spool: cannot write here: Not a directory; set TAXBREAK_SPOOL"):
        serve(settings.model_copy(update={"spool": tmp_path / "file" / "spool"}))


def test_a_folder_others_may_have_written_to_is_said_in_one_line_and_left_alone(settings, tmp_path):
    (tmp_path / "thesis.txt").touch()
    tmp_path.chmod(0o777)

    with pytest.raises(SpoolError, match=r"others may have written to it; set TAXBREAK_SPOOL"):
        serve(settings.model_copy(update={"spool": tmp_path}))

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
