import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from taxbreak_vllm.model.step import Server
from taxbreak_vllm.service.app import create_app
from taxbreak_vllm.service.mount import mount

SERVING = Path(__file__).parents[1] / "data" / "serving.json"


@pytest.fixture
def app():
    app = FastAPI()

    @app.get("/v1/models")
    def models():
        return ["tiny"]

    return app


def test_mounting_twice_mounts_once_and_runs_nothing(app, settings):
    mounted = mount(app, settings)
    num_routes = len(app.routes)

    assert mount(app, settings) is mounted
    assert len(app.routes) == num_routes
    assert not settings.spool.exists()
    mounted.close()


def test_the_host_keeps_its_own_routes_and_errors(app, settings):
    mount(app, settings)
    client = TestClient(app)

    assert client.get("/v1/models").json() == ["tiny"]
    assert client.get("/none").json() == {"detail": "Not Found"}
    assert client.get("/v1/taxbreak/steps/none").headers["content-type"] == "application/problem+json"
    assert client.get("/metrics").status_code == 404


def test_the_routes_are_those_of_the_sidecar(app, settings):
    mount(app, settings)

    def routes(app):
        return {(route.path, *sorted(route.methods)) for route in app.routes if route.path.startswith("/v1/taxbreak")}

    assert routes(app) == routes(create_app(settings))
    assert app.openapi()["paths"].keys() - {"/v1/models"} <= create_app(settings).openapi()["paths"].keys()


def test_a_step_is_taken_apart_there_too(app, settings, put):
    put("a", trace=SERVING.read_bytes())
    mount(app, settings)

    with TestClient(app) as client:
        assert client.get("/v1/taxbreak/steps/a/fusion").json()["launches"] == 19
        assert client.get("/v1/taxbreak/steps/none/fusion").status_code == 404


def test_each_route_and_the_models_of_its_answers_are_built_once(settings, monkeypatch):
    built = []
    monkeypatch.setattr("fastapi.routing.create_model_field", lambda **field: built.append(field["name"]))

    for build in (lambda: mount(FastAPI(), settings), lambda: create_app(settings)):
        built.clear()
        build()

        assert len(built) > 10
        assert len(built) == len(set(built))


def test_long_answers_are_compressed_and_the_host_s_own_are_not(app, settings, put, spool, make_state):
    app.get("/long")(lambda: "x" * 10_000)
    put("a", trace=SERVING.read_bytes())
    mount(app, settings)
    client = TestClient(app)

    assert client.get("/openapi.json").headers.get("content-encoding") is None
    assert client.get("/long").headers.get("content-encoding") is None
    assert client.get("/v1/taxbreak/breakdown").headers["content-encoding"] == "gzip"
    assert "content-encoding" not in client.get("/v1/taxbreak/steps/a/trace").headers


def test_once_started_it_analyzes_and_asks_its_own_server(app, settings, spool, make_state, until):
    """With the real analysis, in the real process."""
    for server_id in ("vllm-a", "vllm-b"):
        spool.put_state(make_state(server=Server(server_id=server_id), updated_unix_ns=time.time_ns()))
    mounted = mount(app, settings)

    mounted.start("vllm-b")
    mounted.start("vllm-b")

    until(lambda: not _is_claim_free(spool))
    assert TestClient(app).post("/v1/taxbreak/captures", json={}).json()["server_id"] == "vllm-b"
    mounted.close()
    assert _is_claim_free(spool)


def test_vllms_process_loads_no_analysis():
    script = "import sys, taxbreak_vllm.service.mount, taxbreak_vllm.service.app\n"
    script += "print(*({'pandas', 'numpy', 'torch', 'taxbreak_vllm.taxes.analyze'} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)

    assert loaded.stdout.split() == []


def _is_claim_free(spool):
    with spool.claim() as is_free:
        return is_free
