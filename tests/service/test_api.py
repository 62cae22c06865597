import gzip

import jsonschema
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.step import Server
from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.service.metrics.collector import TaxbreakCollector
from taxbreak_vllm.service.processes.analyzer import Analyzer

OTHER = Server(server_id="vllm-b", model_name="tiny", rank=1)


@pytest.fixture
def serve(settings, clock):
    """A client of the routes, with other settings or a server of their own."""

    def serve(server_id=None, **changes):
        app = FastAPI()
        router = create_router(settings.model_copy(update=changes), server_id=lambda: server_id, now_ns=clock)
        app.include_router(router)
        return TestClient(app, base_url="http://test/v1/taxbreak/")

    return serve


@pytest.fixture
def client(serve):
    return serve()


@pytest.fixture
def turn(spool, results, analyze, clock):
    return Analyzer(spool, results, analyze, retention_ns=86400 * 10**9, now_ns=clock).turn


@pytest.fixture
def running(spool, make_state):
    """A server that is alive and records."""
    spool.put_state(make_state())


def problem(response, status):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["type"] == "about:blank"
    assert body["status"] == status
    assert body["title"]
    return body


def test_status_tells_servers_spool_and_analysis(client, running, put, turn):
    put("a")
    turn()
    put("b")

    status = client.get("status").json()

    (server,) = status["servers"]
    assert server["live"] is True
    assert server["server"]["model_name"] == "tiny"
    assert status["spool"]["captures"] == 2
    assert status["spool"]["pending"] == 1
    assert status["results"] == {"steps": 1}
    assert status["analyzer"] == {"restarts": 0}


def test_a_server_that_fell_silent_is_not_live(client, running, clock):
    clock.sleep_s(31)

    assert [server["live"] for server in client.get("status").json()["servers"]] == [False]


def test_the_breakdown_of_the_window_adds_its_steps(client, put, turn, clock):
    put("old", 100)
    clock.sleep_s(1000)
    put("a", 1)
    put("b", 2, phase="prefill")
    turn()

    both = Breakdown.from_json(client.get("breakdown").content)
    prefill = Breakdown.from_json(client.get("breakdown", params={"phase": "prefill"}).content)
    every = Breakdown.from_json(client.get("breakdown", params={"window_s": 2000}).content)

    assert {step.name for step in both.steps} == {"a", "b"}
    assert both.total.taxes.delta_ft_ns == 180
    assert prefill.total.taxes.delta_ft_ns == 120
    assert every.total.taxes.delta_ft_ns == 60 * 103
    assert "name" not in client.get("breakdown").json()["total"]


def test_the_breakdown_of_one_server_of_several(client, put, turn):
    put("a", 1)
    put("b", 2, server=OTHER)
    turn()

    found = Breakdown.from_json(client.get("breakdown", params={"server_id": "vllm-b"}).content)

    assert [step.name for step in found.steps] == ["b"]


def test_an_empty_window_says_so(client):
    found = Breakdown.from_json(client.get("breakdown").content)

    assert found.steps == ()
    assert found.notes == ("no step was analyzed in this window",)


def test_the_breakdown_and_the_metrics_tell_the_same(client, put, turn, settings, spool, clock):
    registry = CollectorRegistry()
    registry.register(TaxbreakCollector(settings.results_path, spool, window_ns=10**12, now_ns=clock))
    for index in range(5):
        put(f"s{index}", 12_345 * (index + 1))
    turn()

    total = Breakdown.from_json(client.get("breakdown").content).total

    def value(name, **labels):
        labels |= {"model_name": "tiny", "engine": "0", "rank": "0", "phase": "decode"}
        return registry.get_sample_value(f"taxbreak_{name}_total", labels)

    for component in ("delta_ft", "delta_ct", "delta_kt"):
        told = getattr(total.taxes, f"{component}_ns") / 1e9
        exposed = getattr(total.exposed, f"{component}_ns") / 1e9
        assert value("orchestration_seconds", component=component) == told
        assert value("exposed_orchestration_seconds", component=component) == exposed
    assert value("device_active_seconds") == total.device.active_ns / 1e9
    assert value("tklqt_seconds") == total.tklqt_ns / 1e9
    assert value("launches") == total.launches
    assert value("sampled_output_tokens") == total.batch.output_tokens


def test_steps_are_listed_newest_first(client, put, turn, clock):
    for step_id, phase in (("a", "decode"), ("b", "prefill"), ("c", "decode")):
        put(step_id, phase=phase)
        clock.sleep_s(1)
    turn()

    def listed(**query):
        return [step["step_id"] for step in client.get("steps", params=query).json()["steps"]]

    assert listed() == ["c", "b", "a"]
    assert listed(limit=1) == ["c"]
    assert listed(phase="decode") == ["c", "a"]


def test_one_step_and_its_trace(client, put, turn):
    put("a", 3)
    turn()

    assert Breakdown.from_json(client.get("steps/a").content).total.taxes.delta_ft_ns == 180
    trace = client.get("steps/a/trace")
    assert trace.headers["content-type"] == "application/gzip"
    assert b'"delta_ft_ns":180' in gzip.decompress(trace.content)


def test_a_step_that_was_set_aside_says_why(client, put, turn):
    put("bad", trace=b"junk")
    turn()

    assert "set aside: analysis_failed: TraceFormatError" in problem(client.get("steps/bad"), 404)["detail"]


@pytest.mark.parametrize(
    "step_id", ["none", "..", "%2e%2e", "..%2f..%2fresults.sqlite3", ".hidden", "a%00b", "x" * 300]
)
@pytest.mark.parametrize("what", ["", "/trace"])
def test_an_id_that_is_none_finds_nothing(client, put, step_id, what):
    put("a")

    response = client.get(f"http://test/v1/taxbreak/steps/{step_id}{what}")

    assert response.status_code == 404
    assert b"SQLite" not in response.content


@pytest.mark.parametrize(
    "path",
    ["breakdown?phase=none", "breakdown?window_s=0", "breakdown?window_s=x", "steps?limit=0", "steps?limit=1001"],
)
def test_a_wrong_query_is_a_problem(client, path):
    (error,) = problem(client.get(path), 422)["errors"]

    assert error["loc"][0] == "query"


def test_a_capture_from_request_to_breakdown(client, running, spool, put, turn, make_state, clock):
    wish = {"steps": 2, "phase": "decode", "timeout_s": 30.0, "stacks": True, "max_stall_ms": 500}
    answer = client.post("captures", json=wish)

    assert answer.status_code == 202
    capture_id = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/taxbreak/captures/{capture_id}"
    location = f"http://test{answer.headers['location']}"
    request = spool.read_request("vllm-a")
    assert (request.capture_id, request.steps, request.phase, request.stacks) == (capture_id, 2, "decode", True)
    assert request.max_stall_ms == 500
    assert request.expires_unix_ns == clock() + 30 * 10**9

    put("a", 1, capture_id=capture_id)
    spool.put_state(make_state(capture_id=capture_id, capture_recorded=2, updated_unix_ns=clock() + 1))
    turn()
    half = client.get(location).json()
    assert (half["status"], half["recorded"], half["analyzed"]) == ("running", 2, 1)
    assert "breakdown" not in half

    put("b", 2, capture_id=capture_id)
    put("c", 4)  # sampled beside it
    turn()
    done = client.get(location).json()
    assert (done["status"], done["recorded"], done["analyzed"], done["failed"]) == ("done", 2, 2, 0)
    breakdown = Breakdown.from_builtins(done["breakdown"])
    assert {step.name for step in breakdown.steps} == {"a", "b"}
    assert breakdown.total.taxes.delta_ft_ns == 180
    assert [row["id"] for row in client.get("captures").json()["captures"]] == [capture_id]


def test_a_second_capture_of_a_server_is_a_conflict_until_the_first_ends(client, running, spool, clock, make_state):
    first = client.post("captures", json={"timeout_s": 10}).json()["id"]

    assert problem(client.post("captures", json={}), 409)["capture_id"] == first
    assert spool.read_request("vllm-a").capture_id == first

    clock.sleep_s(11)
    assert client.get(f"captures/{first}").json()["status"] == "expired"
    assert client.post("captures", json={}).status_code == 202


def test_no_more_steps_are_asked_for_than_the_worker_records(client, running, spool, make_state, clock):
    spool.put_state(make_state(max_capture_steps=3, updated_unix_ns=clock() + 1))

    assert "TAXBREAK_MAX_CAPTURE_STEPS=3" in problem(client.post("captures", json={"steps": 4}), 422)["detail"]
    assert client.post("captures", json={"steps": 3}).status_code == 202


def test_a_capture_taken_back_frees_the_server(client, running, spool):
    first = client.post("captures", json={}).json()["id"]

    assert client.delete(f"captures/{first}").json()["status"] == "cancelled"

    assert spool.read_request("vllm-a") is None
    assert client.delete(f"captures/{first}").json()["status"] == "cancelled"
    assert problem(client.get(f"captures/{first}"), 404)["detail"] == "this capture was taken back"
    assert client.post("captures", json={}).status_code == 202


def test_a_capture_that_has_ended_cannot_be_taken_back(client, running, clock):
    first = client.post("captures", json={"timeout_s": 10}).json()["id"]
    clock.sleep_s(11)

    assert problem(client.delete(f"captures/{first}"), 409)["detail"] == "this capture has ended: expired"


def test_too_many_captures_a_minute_are_told_when_to_come_again(serve, running, clock):
    client = serve(captures_per_minute=2)
    for _ in range(2):
        client.delete(f"captures/{client.post('captures', json={}).json()['id']}")
        clock.sleep_s(10)

    response = client.post("captures", json={})

    assert "TAXBREAK_CAPTURES_PER_MINUTE=2" in problem(response, 429)["detail"]
    assert response.headers["retry-after"] == "40"
    clock.sleep_s(10)
    assert client.post("captures", json={}).status_code == 429


def test_pages_follow_one_another_to_the_end(client, running, put, turn, clock):
    for index in range(5):
        put(f"s{index}")
        client.delete(f"captures/{client.post('captures', json={}).json()['id']}")
        clock.sleep_s(1)
    turn()

    def walk(path, key):
        found, query = [], {"limit": 2}
        while query:
            page = client.get(path, params=query).json()
            found += [row[key] for row in page[path]]
            query = page["next"] and {"limit": 2, "cursor": page["next"]}
        return found

    assert walk("steps", "step_id") == ["s4", "s3", "s2", "s1", "s0"]
    assert walk("captures", "id") == [row["id"] for row in client.get("captures").json()["captures"]]
    assert len(set(walk("captures", "id"))) == 5
    assert client.get("steps", params={"cursor": "none"}).json() == {"steps": [], "next": None}


@pytest.mark.parametrize("path", ["captures", "captures/a"])
def test_a_wrong_method_is_told_all_that_are_right(client, path):
    response = client.put(path)

    problem(response, 405)
    wanted = "GET, POST" if path == "captures" else "DELETE, GET"
    assert response.headers["allow"] == wanted


def test_every_route_is_described_with_an_example_that_fits(settings):
    app = FastAPI()
    app.include_router(create_router(settings))
    document = app.openapi()

    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            (status,) = [status for status in operation["responses"] if status.startswith("2")]
            content = operation["responses"][status]["content"]
            if not path.endswith(("/trace", "/profile", "/{name}")):  # files
                schema = {"components": document["components"], **content["application/json"]["schema"]}
                jsonschema.validate(content["application/json"]["example"], schema)
            for status, response in operation["responses"].items():
                if status[0] == "4" or status[0] == "5":
                    (problem_content,) = response["content"].items()
                    assert problem_content[0] == "application/problem+json", (path, method, status)
                    jsonschema.validate(problem_content[1]["example"], problem_content[1]["schema"])


def test_a_step_that_could_not_be_analyzed_does_not_keep_a_capture_open(client, running, put, turn):
    capture_id = client.post("captures", json={"steps": 2}).json()["id"]
    put("a", capture_id=capture_id)
    put("bad", capture_id=capture_id, trace=b"junk")
    turn()

    found = client.get(f"captures/{capture_id}").json()

    assert (found["status"], found["analyzed"], found["failed"]) == ("done", 1, 1)


def test_what_was_recorded_in_time_may_be_analyzed_later(client, running, spool, turn, make_state, clock):
    capture_id = client.post("captures", json={"steps": 1, "timeout_s": 10}).json()["id"]
    spool.put_state(make_state(capture_id=capture_id, capture_recorded=1, updated_unix_ns=clock() + 1))
    turn()

    clock.sleep_s(11)
    assert client.get(f"captures/{capture_id}").json()["status"] == "running"
    clock.sleep_s(60)
    assert client.get(f"captures/{capture_id}").json()["status"] == "expired"


def test_a_capture_none_of_whose_steps_is_recorded_says_why_while_it_waits_and_afterwards(
    client, running, spool, turn, make_state, clock
):
    capture_id = client.post("captures", json={"steps": 1, "timeout_s": 10}).json()["id"]
    why = "stopping the recording would take 48 ms"
    spool.put_state(make_state(capture_id=capture_id, capture_refusal=why))
    turn()

    waiting = client.get(f"captures/{capture_id}").json()
    clock.sleep_s(71)
    expired = client.get(f"captures/{capture_id}").json()

    assert (waiting["status"], waiting["failure"]) == ("running", why)
    assert (expired["status"], expired["failure"]) == ("expired", why)


def test_without_a_running_server_nothing_can_be_captured(client, spool, make_state, clock):
    problem(client.post("captures", json={}), 503)

    spool.put_state(make_state(enabled=False))
    problem(client.post("captures", json={}), 503)

    spool.put_state(make_state())
    clock.sleep_s(31)
    problem(client.post("captures", json={}), 503)


def test_of_several_servers_one_must_be_named(client, running, spool, make_state):
    spool.put_state(make_state(server=OTHER))

    assert problem(client.post("captures", json={}), 409)["servers"] == ["vllm-a", "vllm-b"]
    assert problem(client.post("captures", json={"server_id": "vllm-c"}), 404)["servers"] == ["vllm-a", "vllm-b"]
    assert client.post("captures", json={"server_id": "vllm-b"}).json()["server_id"] == "vllm-b"


def test_a_server_that_mounts_the_routes_asks_itself(serve, running, spool, make_state):
    spool.put_state(make_state(server=OTHER))

    assert serve(server_id="vllm-b").post("captures", json={}).json()["server_id"] == "vllm-b"


@pytest.mark.parametrize(
    "body",
    [
        {"steps": 0},
        {"steps": 257},
        {"steps": "5"},
        {"steps": True},
        {"steps": 1.5},
        {"phase": "x"},
        {"timeout_s": 0},
        {"timeout_s": "9"},
        {"server_id": "../x"},
        {"n": 1},
        [],
        7,
    ],
)
def test_a_wrong_body_is_a_problem_and_asks_for_nothing(client, running, spool, body):
    assert problem(client.post("captures", json=body), 422)["errors"]
    assert spool.read_request("vllm-a") is None


def test_damaged_results_are_a_problem(client, damage_results):
    damage_results()

    assert "malformed" in problem(client.get("captures"), 503)["detail"]


@pytest.mark.parametrize(("method", "path"), [("POST", "captures"), ("PUT", "control"), ("POST", "whatif")])
@pytest.mark.parametrize("content", [b'{"server_id": "\\ud800"}', b'{"\\ud800": 1}'])
def test_a_body_with_half_a_character_is_a_problem_too(client, running, method, path, content):
    response = client.request(method, path, content=content, headers={"Content-Type": "application/json"})

    assert problem(response, 422)["errors"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_web_page_of_another_origin_cannot_ask_for_a_capture(client, running, spool, content_type):
    """Its browser sends only such types without asking us first."""
    response = client.post("captures", content=b'{"steps": 1}', headers={"Content-Type": content_type})

    problem(response, 422)
    assert spool.read_request("vllm-a") is None


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_capture_is_not_found(client, method):
    problem(client.request(method, "captures/none"), 404)


ROUTES = [
    ("GET", "status"),
    ("GET", "breakdown"),
    ("GET", "advice"),
    ("GET", "steps"),
    ("GET", "steps/a"),
    ("GET", "steps/a/trace"),
    ("GET", "steps/a/timeline"),
    ("GET", "steps/a/fusion"),
    ("GET", "steps/a/stacks"),
    ("GET", "steps/a/profile"),
    ("GET", "iterations"),
    ("GET", "requests"),
    ("POST", "captures"),
    ("GET", "captures"),
    ("GET", "captures/a"),
    ("DELETE", "captures/a"),
    ("GET", "control"),
    ("PUT", "control"),
    ("GET", "whatif"),
    ("POST", "whatif"),
    ("GET", "limit"),
    ("GET", "transition"),
    ("GET", "traffic"),
    ("GET", "traffic/a/engine-0-00000000.jsonl.gz"),
]


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", "Basic c2VjcmV0", "Bearer sécret"])
def test_with_a_key_every_route_asks_for_it(serve, running, spool, given):
    client = serve(api_key=SecretStr("secret"))
    headers = {} if given is None else {"Authorization": given.encode()}
    client.get("status", headers={"Authorization": "Bearer secret"})  # so that wrong ones are not bounded

    answers = {route: client.request(*route, headers=headers, content=b"not json") for route in ROUTES}

    for response in answers.values():
        problem(response, 401)
    assert {answer.headers["www-authenticate"] for answer in answers.values()} == {'Bearer realm="taxbreak"'}
    assert spool.read_request("vllm-a") is None


def test_the_key_opens(serve, put, turn):
    client = serve(api_key=SecretStr("secret"))

    assert client.get("status", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("status", headers={"Authorization": "bearer secret"}).status_code == 200


def test_every_route_is_in_the_list_above(settings):
    router = create_router(settings)
    names = {"steps/a": "steps/{step_id}", "captures/a": "captures/{capture_id}"}
    names["traffic/a/engine-0-00000000.jsonl.gz"] = "traffic/{server_id}/{name}"

    def route_of(path):
        for name, template in names.items():
            path = path.replace(name, template)
        return f"/v1/taxbreak/{path}"

    assert {(method, route.path) for route in router.routes for method in route.methods} == {
        (method, route_of(path)) for method, path in ROUTES
    }


def test_results_that_cannot_be_read_are_a_problem_too(serve, tmp_path):
    (tmp_path / "junk").write_bytes(b"junk" * 1000)

    found = problem(serve(results=tmp_path / "junk").get("status"), 503)

    assert "TAXBREAK_RESULTS" in found["detail"]
