import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from taxbreak_vllm.model.step import Server
from taxbreak_vllm.model.worker import Control
from taxbreak_vllm.service.http.routes import create_router

SECOND_RANK = Server(server_id="vllm-a", model_name="tiny", rank=1)
OTHER = Server(server_id="vllm-b", model_name="tiny")


@pytest.fixture
def client(settings, clock):
    app = FastAPI()
    app.include_router(create_router(settings, now_ns=clock))
    return TestClient(app, base_url="http://test/v1/taxbreak/")


@pytest.fixture
def running(spool, make_state):
    """A server of two ranks that records."""
    for state in (make_state(sample_every=1000), make_state(server=SECOND_RANK, sample_every=1000)):
        spool.put_state(state)


def _detail(response, status):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()["detail"]


def test_before_anything_was_said_each_worker_tells_what_its_environment_says(client, running):
    state = client.get("control").json()

    assert (state["server_id"], state["control"], state["applied"]) == ("vllm-a", None, True)
    assert [(worker["rank"], worker["enabled"], worker["sample_every"]) for worker in state["workers"]] == [
        (0, True, 1000),
        (1, True, 1000),
    ]


def test_a_change_reaches_the_spool_and_is_applied_once_every_rank_says_so(client, running, spool, make_state):
    change = {"enabled": False, "sample_every": 50, "overhead_budget_ratio": 0.01}
    answer = client.put("control", json=change).json()

    control = spool.read_control("vllm-a")
    assert (control.enabled, control.sample_every, control.overhead_budget_ratio) == (False, 50, 0.01)
    assert answer["applied"] is False

    spool.put_state(make_state(control_id=control.control_id))
    assert client.get("control").json()["applied"] is False
    spool.put_state(make_state(control_id=control.control_id, server=SECOND_RANK))
    assert client.get("control").json()["applied"] is True


def test_what_is_left_out_stays_as_it_was_said_before(client, running, spool):
    client.put("control", json={"enabled": False, "sample_every": 50})
    client.put("control", json={"overhead_budget_ratio": 0.01})
    client.put("control", json={"enabled": True})

    control = spool.read_control("vllm-a")
    assert (control.enabled, control.sample_every, control.overhead_budget_ratio) == (True, 50, 0.01)


def test_said_twice_it_holds_as_said_once(client, running, spool):
    answers = [client.put("control", json={"sample_every": 50}).json()["control"] for _ in range(2)]

    settings = [{k: v for k, v in answer.items() if k != "control_id"} for answer in answers]
    assert settings[0] == settings[1]


@pytest.mark.parametrize(
    "body",
    [
        {"sample_every": 1},
        {"sample_every": "5"},
        {"sample_every": 1e40},
        {"enabled": "yes"},
        {"overhead_budget_ratio": 0},
        {"overhead_budget_ratio": 1.1},
        {"overhead_budget_ratio": "x"},
        {"n": 1},
        [],
        7,
    ],
)
def test_a_wrong_body_is_a_problem_and_changes_nothing(client, running, spool, body):
    _detail(client.put("control", json=body), 422)

    assert spool.read_control("vllm-a") is None


@pytest.mark.parametrize("content", [b'{"overhead_budget_ratio": NaN}', b'{"overhead_budget_ratio": Infinity}', b"{"])
def test_what_is_no_json_is_a_problem_too(client, running, spool, content):
    _detail(client.put("control", content=content, headers={"Content-Type": "application/json"}), 422)

    assert spool.read_control("vllm-a") is None


def test_where_no_server_runs_there_is_nothing_to_control(client, running, clock):
    clock.sleep_s(31)

    _detail(client.get("control"), 503)
    _detail(client.put("control", json={"enabled": True}), 503)


def test_of_several_servers_one_has_to_be_named(client, running, spool, make_state):
    spool.put_state(make_state(server=OTHER))

    assert "several" in _detail(client.put("control", json={"enabled": False}), 409)
    assert "none of" in _detail(client.get("control", params={"server_id": "../x"}), 404)

    client.put("control", json={"enabled": False, "server_id": "vllm-b"}).raise_for_status()
    assert client.get("control", params={"server_id": "vllm-b"}).json()["control"]["enabled"] is False
    assert spool.read_control("vllm-a") is None


def test_a_server_whose_recording_is_off_can_be_controlled_but_not_asked_for_steps(client, spool, make_state):
    spool.put_state(make_state(enabled=False, off_reason="overhead"))

    assert "off (overhead)" in _detail(client.post("captures", json={}), 503)
    assert client.put("control", json={"enabled": True}).json()["workers"][0]["off_reason"] == "overhead"


@pytest.mark.parametrize(
    ("reason", "remedy"), [("disabled", "control --enable turns it on"), ("no_device_records", "control says more")]
)
def test_whoever_asks_for_steps_of_a_server_that_records_none_is_told_what_helps(
    client, spool, make_state, reason, remedy
):
    spool.put_state(make_state(enabled=False, off_reason=reason))

    assert remedy in _detail(client.post("captures", json={}), 503)


def test_what_one_should_know_of_a_servers_recording_is_told(client, spool, make_state):
    spool.put_state(make_state(notes=("this CUPTI is old",)))

    assert client.get("control").json()["workers"][0]["notes"] == ["this CUPTI is old"]
    assert client.get("status").json()["servers"][0]["notes"] == ["this CUPTI is old"]


def test_a_spool_that_cannot_be_written_is_a_problem(client, running, spool):
    (spool.root / "vllm-a" / "control.json").mkdir()

    assert str(spool.root) in _detail(client.put("control", json={"enabled": True}), 503)


def test_garbage_in_its_place_is_as_if_nothing_had_been_said(client, running, spool):
    (spool.root / "vllm-a" / "control.json").write_text('{"control_id": 7}')

    assert client.get("control").json()["control"] is None
    client.put("control", json={"sample_every": 50})
    assert isinstance(spool.read_control("vllm-a"), Control)
