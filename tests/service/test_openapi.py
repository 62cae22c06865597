"""/openapi.json tells of every member of an answer: real answers of every route, and none has one that is not there."""

import gzip
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from fastapi.testclient import TestClient
from live_states import engine_state, frontend_state, waterfall

from taxbreak_vllm.model.worker import Control
from taxbreak_vllm.service.app import create_app
from taxbreak_vllm.service.processes.supervisor import Supervisor
from taxbreak_vllm.traffic.log import Log
from taxbreak_vllm.traffic.rows import Setup

STEP = "step-decode"
TRACE = Path(__file__).parents[1] / "data" / "serving.json"
GETS = {
    "/v1/taxbreak/status": ("",),
    "/v1/taxbreak/breakdown": ("", "?top_limit=1", "?phase=encode"),
    "/v1/taxbreak/steps": ("", "?limit=1"),
    f"/v1/taxbreak/steps/{STEP}": ("", "?top_limit=1"),
    f"/v1/taxbreak/steps/{STEP}/timeline": ("",),
    f"/v1/taxbreak/steps/{STEP}/fusion": ("",),
    f"/v1/taxbreak/steps/{STEP}/stacks": ("",),
    "/v1/taxbreak/iterations": ("",),
    "/v1/taxbreak/requests": ("",),
    "/v1/taxbreak/captures": ("",),
    "/v1/taxbreak/captures/{capture_id}": ("", "?top_limit=1"),
    "/v1/taxbreak/control": ("",),
    "/v1/taxbreak/whatif": (f"?step_id={STEP}&host=0.7&timeline=true",),
    "/v1/taxbreak/limit": ("", "?phase=encode"),
    "/v1/taxbreak/advice": ("", "?capture_id={capture_id}"),
    "/v1/taxbreak/transition": ("", "?phase=decode"),
    "/v1/taxbreak/traffic": ("", "?server_id=vllm-a"),
}


@pytest.fixture
def client(settings, filled, spool, clock, analyzer_command):
    """A sidecar over all there may be: a server with engine, API server and orders, steps, a trace to take apart."""
    requests = [waterfall(number) for number in range(20)]
    later_ns = time.time_ns() + 3600 * 10**9
    spool.put_engine_state(replace(engine_state(), updated_unix_ns=later_ns))
    spool.put_frontend_state(frontend_state(*requests, updated_unix_ns=later_ns))
    spool.put_waterfalls("vllm-a", "0", requests)
    Log(spool.make_traffic_dir("vllm-a"), Setup(server_id="vllm-a", source="engine-0"), max_bytes=2**20).append([])
    spool.put_control("vllm-a", Control(control_id="c", sample_every=100))
    spool.find(STEP).trace_path.write_bytes(gzip.compress(TRACE.read_bytes()))
    return TestClient(create_app(settings, supervisor=Supervisor(analyzer_command), now_ns=clock))


@pytest.fixture
def described(client):
    """Find how the answer of a method and path is described, closed to members that are not named there."""
    api = client.get("/openapi.json").json()
    for schema in api["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)

    def described(method, path, status=200):
        content = api["paths"][path][method]["responses"].get(str(status), {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        return schema and schema | {"components": api["components"]}

    described.paths = api["paths"]
    return described


def unlike(answer, schema):
    """What of an answer is not as it is described, a line each."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(answer)
    return [f"{error.json_path}: {error.message[-120:]}" for error in errors]


def test_no_answer_has_a_member_that_is_not_described(client, described, record, settings):
    asked = client.post("/v1/taxbreak/captures", json={"steps": 1})
    capture_id = asked.json()["id"]
    record(1, capture_id=capture_id)
    checked = {("post", "/v1/taxbreak/captures")}
    wrong = unlike(asked.json(), described("post", "/v1/taxbreak/captures", 202))
    for path, queries in GETS.items():
        template = path.replace(STEP, "{step_id}")
        for query in queries:
            answer = client.get((path + query).format(capture_id=capture_id))
            assert answer.status_code == 200, (path, query, answer.text)
            wrong += unlike(answer.json(), described("get", template))
        checked.add(("get", template))
    other_id = client.post("/v1/taxbreak/captures", json={"steps": 1}).json()["id"]
    for method, path, body in (
        ("post", "/v1/taxbreak/whatif", {"step_id": [STEP], "kernels": ["0.5"]}),
        ("put", "/v1/taxbreak/control", {"enabled": True}),
        ("delete", "/v1/taxbreak/captures/{capture_id}", None),
    ):
        answer = client.request(method, path.format(capture_id=other_id), json=body)
        assert answer.is_success, answer.text
        wrong += unlike(answer.json(), described(method, path, answer.status_code))
        checked.add((method, path))

    assert wrong == []
    told = {(method, path) for path, methods in described.paths.items() for method in methods}
    with_json = {(method, path) for method, path in told if described(method, path) or described(method, path, 202)}
    assert checked == with_json
