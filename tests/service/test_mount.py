import subprocess
import sys
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from taxbreak_vllm.model.step import Server
from taxbreak_vllm.service.mount import mount


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
