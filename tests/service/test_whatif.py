"""`GET` and `POST whatif`: real traces are replayed in the real child, and what can't be answered is said."""

import gzip
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from taxbreak_vllm.model.step import Phase, Server
from taxbreak_vllm.model.whatif import HOST_CLASSES
from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.service.http.trace_reads import TraceReads
from taxbreak_vllm.service.processes.analyzer import Analyzer
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.taxes.analyze import analyze
from taxbreak_vllm.whatif.changes import HOST

BERT = gzip.decompress(
    (Path(__file__).parents[1] / "data" / "traces" / "h100_hf_bert-small_infer.json.gz").read_bytes()
)
OTHER = Server(server_id="vllm-b", engine="0", rank=0, model_name="other", device_type="cuda")


@pytest.fixture
def record(put, spool, results, clock):
    """Put captures of a real trace into the spool, one after the other, and analyze them."""

    def record(*steps):
        for step_id, phase, options in steps:
            clock.sleep_s(1)
            put(step_id, phase=phase, trace=BERT, **options)
        Analyzer(spool, results, lambda capture: analyze(capture.path), retention_ns=10**18, now_ns=clock).turn()

    return record


@pytest.fixture
def client(settings):
    opened = []

    def client(*, traces=None, **changes):
        app = FastAPI()
        app.include_router(create_router(settings.model_copy(update=changes), traces=traces))
        opened.append(TestClient(app))
        return opened[-1].__enter__()

    yield client
    for one in opened:
        one.__exit__(None, None, None)


def told(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["answers"]


def test_the_newest_step_of_each_phase_of_one_server_is_replayed(client, record):
    record(
        ("of-b", Phase.VERIFY, {"server": OTHER}), ("old", Phase.DECODE, {}), ("new", Phase.DECODE, {}),
        ("first", Phase.PREFILL, {"capture_id": "wish"}), ("idle", Phase.IDLE, {}),
    )  # fmt: skip
    client = client()

    def steps(query=""):
        return [(one["step_id"], one["phase"]) for one in told(client.get(f"/v1/taxbreak/whatif?host=0.7{query}"))]

    assert steps() == [("first", "prefill"), ("new", "decode")]
    assert steps("&phase=decode") == [("new", "decode")]
    assert steps("&phase=idle") == [("idle", "idle")]
    assert steps("&server_id=vllm-b") == [("of-b", "verify")]
    assert steps("&capture_id=wish") == [("first", "prefill")]
    assert steps("&step_id=old&step_id=of-b&step_id=old") == [("old", "decode"), ("of-b", "verify")]


def test_a_prediction_lies_in_its_interval_and_above_its_bound_and_says_what_would_refute_it(client, record):
    record(("a", Phase.DECODE, {}))

    (answer,) = told(client().get("/v1/taxbreak/whatif?host=0.5..0.7&kernels=gemm=0.6"))

    (step,) = answer["steps"]
    assert answer["schema"] == "taxbreak.whatif/1"
    assert answer["change"] == "--host 0.5..0.7 --kernels gemm=0.6"
    assert step["host_free_ns"] < step["low_ns"] <= step["predicted_ns"] <= step["high_ns"] < step["observed_ns"]
    assert answer["refuted_by"].startswith("recorded with --host 0.5..0.7 --kernels gemm=0.6, the same steps take")
    assert answer["command"].endswith("/a AFTER")
    assert all(gate["passes"] for gate in answer["gates"])
    assert answer["timeline"] is None


def test_json_and_query_say_the_same(client, record):
    record(("a", Phase.DECODE, {}))
    client = client()
    body = {"host": ["python=0.5", "launch=2"], "kernels": ["0.8"], "phase": "decode", "floor_us": 3, "async": False}

    posted = client.post("/v1/taxbreak/whatif", json=body)
    got = client.get(
        "/v1/taxbreak/whatif?host=python=0.5&host=launch=2&kernels=0.8&phase=decode&floor_us=3&async=false"
    )

    assert told(posted) == told(got)
    assert told(got)[0]["change"] == "--host python=0.5 --host launch=2 --kernels 0.8 --floor-us 3"


def test_the_timeline_has_what_was_observed_and_what_is_predicted_on_one_axis(client, record):
    record(("a", Phase.DECODE, {}))

    (answer,) = told(client().get("/v1/taxbreak/whatif?host=0.5&timeline=true"))

    drawn, window = answer["timeline"], answer["window"]
    hosts = {name: drawn[name][0] for name in ("observed", "predicted")}
    ends = {name: host["start_ns"][-1] + host["length_ns"][-1] for name, host in hosts.items()}
    assert [strip["title"] for strip in (*drawn["observed"], *drawn["predicted"])] == ["host", "device"] * 2
    assert ends == {"observed": window["observed_ns"], "predicted": window["predicted_ns"]}
    assert drawn["length_ns"] == window["observed_ns"]


@pytest.mark.parametrize("change", ["graph=full", "no_sync=nosuch"])
def test_what_a_recording_cannot_answer_is_refused_in_words(client, record, change):
    record(("a", Phase.DECODE, {}))

    (answer,) = told(client().get(f"/v1/taxbreak/whatif?{change}"))

    assert answer["window"] is None
    assert f"--{change.partition('=')[0].replace('_', '-')}" in answer["refused"]


def test_a_gate_that_fails_is_named_with_its_number(client, record, put, real_trace):
    put("h800", trace=gzip.decompress(real_trace("h800_deepseek_train").read_bytes()))

    (answer,) = told(client().get("/v1/taxbreak/whatif?host=0.7&step_id=h800&timeline=true"))

    assert "peers is 17.5%, at most 1% passes" in answer["refused"]
    assert {gate["name"]: gate["passes"] for gate in answer["gates"]}["peers"] is False
    assert answer["timeline"] is None


def test_what_is_no_change_is_a_422_without_a_child(client, monkeypatch):
    monkeypatch.setattr("sys.executable", "/no/such/python")
    client = client()
    wrong = (
        *("host=fast", "host=rust=2", "host=2000", "kernels=collective=0.5", "graph=half", "fuse=alone", "fuse=,a"),
        *("floor_us=-1", "async=perhaps", "hosts=2", "phase=never", "step_id=../..", "no_sync=", "is_async=true"),
    )
    bodies = ({"host": "0.7"}, {"async": "true"}, {"async": 1}, {"host": [0.7]}, {"hosts": []}, [])

    answers = [client.get(f"/v1/taxbreak/whatif?{query}") for query in wrong]
    answers += [client.post("/v1/taxbreak/whatif", json=body) for body in bodies]

    assert {(answer.status_code, answer.headers["content-type"]) for answer in answers} == {
        (422, "application/problem+json")
    }


def test_words_that_only_the_child_finds_wrong_are_a_422_too(client, record):
    record(("a", Phase.DECODE, {}))

    answer = client().post("/v1/taxbreak/whatif", json={"fuse": ["\x1c,b"]})

    assert answer.status_code == 422
    assert "give two or more names" in answer.json()["detail"]


def test_where_nothing_is_recorded_or_no_more_it_is_a_404(client, record, put):
    client = client()
    put("junk", trace=b"junk")

    assert "record some" in client.get("/v1/taxbreak/whatif").json()["detail"]
    assert client.get("/v1/taxbreak/whatif?step_id=none").status_code == 404
    assert "cannot be read" in client.get("/v1/taxbreak/whatif?step_id=junk").json()["detail"]


def test_an_answer_outlives_its_capture_and_a_refusal_is_asked_again(client, record, spool):
    record(("a", Phase.DECODE, {}))
    client = client()
    first = told(client.get("/v1/taxbreak/whatif?host=0.7&step_id=a"))
    told(client.get("/v1/taxbreak/whatif?compiled=true&step_id=a"))
    shutil.rmtree(spool.find("a").path)

    assert told(client.get("/v1/taxbreak/whatif?host=0.7&step_id=a")) == first
    assert client.get("/v1/taxbreak/whatif?compiled=true&step_id=a").status_code == 404


def test_a_refusal_for_want_of_floors_is_none_once_they_are_measured(client, record, settings, put_graph_floors):
    """The recording is kept by the child meanwhile."""
    record(("a", Phase.DECODE, {}))
    client = client()
    (before,) = told(client.get("/v1/taxbreak/whatif?graph=full"))
    put_graph_floors(settings.baselines_path)

    (after,) = told(client.get("/v1/taxbreak/whatif?graph=full"))

    assert "measure it where this was recorded" in before["refused"]
    (step,) = after["steps"]
    assert after["refused"] is None
    assert step["host_free_ns"] < step["low_ns"] <= step["predicted_ns"] <= step["high_ns"]
    assert step["predicted_ns"] < step["observed_ns"] / 3  # 4.5 ms of launching; its kernels take 0.4 ms


def test_the_child_that_was_killed_meanwhile_is_no_fault_of_who_asks(client, record, settings):
    record(("a", Phase.DECODE, {}))
    traces = TraceReads(Spool(settings.spool, max_bytes=10**9, max_captures=99), settings.baselines_path)
    client = client(traces=traces)
    told(client.get("/v1/taxbreak/whatif?host=0.7"))
    os.kill(traces.child.pid, signal.SIGKILL)

    assert told(client.get("/v1/taxbreak/whatif?host=0.6"))[0]["refused"] is None


def test_the_loop_is_free_meanwhile(client, put):
    put("a", trace=BERT)
    client = client()
    client.app.add_api_route("/other", lambda: True)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.get, "/v1/taxbreak/whatif?step_id=a")
        assert all(client.get("/other").json() for _ in range(5))
        assert not slow.done()
        assert slow.result().status_code == 200


def test_a_key_that_only_reads_asks_by_get(client, record):
    record(("a", Phase.DECODE, {}))
    client = client(api_key=SecretStr("control"), read_key=SecretStr("look"))
    look = {"Authorization": "Bearer look"}

    assert client.get("/v1/taxbreak/whatif").status_code == 401
    assert client.get("/v1/taxbreak/whatif", headers=look).status_code == 200
    assert client.post("/v1/taxbreak/whatif", json={}, headers=look).status_code == 403
    assert client.post("/v1/taxbreak/whatif", json={}, headers={"Authorization": "Bearer control"}).status_code == 200


def test_the_classes_that_can_be_scaled_are_those_of_the_host():
    assert set(HOST_CLASSES) == {cls.name.lower() for cls in HOST}
