"""What the API tells of a whole server: `GET requests`, `GET iterations`, and `hdbi_server` in `GET breakdown`."""

import os
from dataclasses import replace

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from live_states import MS, ahead, engine_state, frontend_state, spans, waterfall

from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.engine import EnginePart
from taxbreak_vllm.service.http.responses import Requests
from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.service.processes.analyzer import Analyzer


@pytest.fixture
def client(settings, clock):
    app = FastAPI()
    app.include_router(create_router(settings, now_ns=clock))
    return TestClient(app, base_url="http://test/v1/taxbreak/")


@pytest.fixture
def turn(spool, results, analyze, clock):
    return Analyzer(spool, results, analyze, retention_ns=86400 * 10**9, now_ns=clock).turn


@pytest.fixture
def serve(spool, clock):
    """An API server with these requests."""

    def serve(*waterfalls, api="0", **fields):
        spool.put_frontend_state(frontend_state(*waterfalls, api=api, updated_unix_ns=clock(), **fields))
        spool.put_waterfalls("vllm-a", api, waterfalls)

    return serve


def ask(client, **query):
    return msgspec.json.decode(client.get("requests", params=query).raise_for_status().content, type=Requests)


def numbers(found):
    return [one.number for one in found.waterfalls]


def test_requests_come_newest_first_from_all_api_servers(client, serve):
    serve(waterfall(1), waterfall(3, started_unix_ns=2 * MS, render=41))
    serve(waterfall(2, started_unix_ns=MS), api="1")

    found = ask(client)

    assert [(one.number, one.api, one.server_id) for one in found.waterfalls] == [
        *((3, "0", "vllm-a"), (2, "1", "vllm-a"), (1, "0", "vllm-a"))
    ]
    assert sum(found.waterfalls[0].stages_ns.values()) == found.waterfalls[0].total_ns
    assert [(state.api, state.num_requests) for state in found.api_servers] == [("0", 2), ("1", 1)]
    assert found.api_servers[0].stages["render"].num == 2
    assert found.reason is None


def test_some_of_one_api_server_and_the_slowest_first(client, serve):
    serve(waterfall(1, decode=90), waterfall(2, started_unix_ns=MS), waterfall(3, started_unix_ns=2 * MS, decode=60))
    serve(waterfall(4, started_unix_ns=9 * MS), api="1")

    assert numbers(ask(client, limit=2)) == [1, 3]  # which ended last
    assert numbers(ask(client, api="0")) == [1, 3, 2]
    assert numbers(ask(client, sort="slowest", limit=2)) == [1, 3]
    assert [state.api for state in ask(client, api="1", server_id="vllm-a").api_servers] == ["1"]


def test_where_no_api_server_is_followed_the_plugin_is_named(client, spool, clock, serve):
    spool.put_engine_state(engine_state(updated_unix_ns=clock()))

    found = ask(client, api="0")

    assert (found.api_servers, found.waterfalls) == ([], None)
    assert "VLLM_PLUGINS=taxbreak" in found.reason


def test_the_requests_of_an_api_server_that_ended_are_not_shown(client, clock, serve):
    serve(waterfall(1))
    clock.sleep_s(31)

    assert ask(client).waterfalls is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "no request has ended yet"),
        ({"total": spans(MS)}, "none of the requests that are followed, one in 64, has ended yet"),
        ({"num_unknown": 3}, "the server keeps no times of its requests (--disable-log-stats)"),
        ({"off_reason": "a hook failed"}, "API server 0 is no longer followed: a hook failed"),
    ],
)
def test_an_api_server_without_requests_says_why(client, serve, fields, why):
    serve(**fields)

    found = ask(client)

    assert (found.waterfalls, found.reason) == (None, why)
    assert len(found.api_servers) == 1


def test_what_cannot_be_read_of_one_api_server_costs_no_other(client, serve, spool):
    serve(waterfall(1))
    serve(waterfall(2), api="1")
    for name in ("state.json", "requests.json"):
        (spool.api_dir("vllm-a", "0") / name).write_bytes(b'[{"number": "x"')

    assert numbers(ask(client)) == [2]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "sort=oldest", f"api={'x' * 300}"])
def test_a_wrong_query_is_a_problem(client, serve, query):
    serve(waterfall(1))

    response = client.get(f"requests?{query}")

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("query", [{"api": "7"}, {"server_id": "../etc"}])
def test_an_api_server_that_does_not_run_is_not_found(client, serve, query):
    serve(waterfall(1))

    response = client.get("requests", params=query)

    assert response.status_code == 404
    assert "vllm-a/0" in response.json()["detail"]


def test_iterations_are_told_by_phase_and_what_tells_of_idle_time(client, spool, clock):
    spool.put_engine_state(engine_state(exposed={EnginePart.SCHEDULE: 1}, updated_unix_ns=clock()))

    (loop,) = client.get("iterations").json()["engines"]

    assert loop["phases"]["decode"]["exposed_ns"] == {"schedule": 1000 * MS}
    assert loop["idle_from"] == "worker_calls"


def test_the_breakdown_has_the_balance_of_the_whole_server(client, spool, put, turn, clock):
    put("a", 10_000)
    put("b", 30_000)
    turn()
    spool.put_engine_state(engine_state(exposed={EnginePart.SCHEDULE: 2}, updated_unix_ns=clock()))

    found = Breakdown.from_json(client.get("breakdown").content).hdbi_server
    of_phase = Breakdown.from_json(client.get("breakdown", params={"phase": "decode"}).content).hdbi_server

    assert found.total == pytest.approx(2.2 / (2.2 + 1.8 + 2))
    assert found == of_phase
    assert found.phases == {"decode": found.total}


@pytest.mark.parametrize(
    ("state", "query", "why"),
    [
        (ahead(), {}, "works a step ahead"),
        (engine_state(num=99), {}, "99 iterations"),
        (engine_state(model_name="other"), {}, "no engine of this model runs"),
        (engine_state(), {"server_id": "vllm-b"}, "no engine of this model runs"),
        (engine_state(), {"phase": "prefill"}, "no engine of this model runs"),
    ],
)
def test_without_it_the_breakdown_says_why(client, spool, put, turn, clock, state, query, why):
    put("a")
    turn()
    spool.put_engine_state(replace(state, updated_unix_ns=clock()))

    found = client.get("breakdown", params=query).json()["hdbi_server"]

    assert found["total"] is None
    assert set(found["phases"].values()) <= {None}
    assert any(why in reason for reason in found["reasons"].values())


def test_a_window_without_steps_and_a_spool_without_a_server_have_none(client, spool):
    assert client.get("breakdown").json()["hdbi_server"]["total"] is None
    assert not os.path.exists(spool.root) or spool.frontend_states() == []
