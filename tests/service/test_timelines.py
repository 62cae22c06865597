"""A step is taken apart in a child, one line says why it cannot be, and a key is asked for where there is one."""

import gzip
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.taxes.recording import Recording

SERVING = Path(__file__).parents[1] / "data" / "serving.json"


@pytest.fixture
def client(settings):
    opened = []

    def client(**changes):
        app = FastAPI()
        app.include_router(create_router(settings.model_copy(update=changes)))
        opened.append(TestClient(app))
        return opened[-1].__enter__()

    yield client
    for one in opened:
        one.__exit__(None, None, None)


@pytest.fixture
def capture(put):
    return put("a", trace=SERVING.read_bytes())


def test_a_step_has_lanes_and_chains(client, capture):
    client = client()

    timeline = client.get("/v1/taxbreak/steps/a/timeline").json()
    fusion = client.get("/v1/taxbreak/steps/a/fusion").json()

    assert timeline["lanes"][0]["title"] == "host by component"
    assert fusion["launches"] == 19
    assert fusion["words"].keys() == {name for chain in fusion["chains"] for name in chain["kernels"]}


def test_a_step_s_stacks_sum_to_its_delta_ft(client, capture):
    stacks = client().get("/v1/taxbreak/steps/a/stacks").json()

    with Recording.open(capture.path) as recording:
        (step, *_), total = recording.breakdown.steps, recording.breakdown.total
    assert sum(stacks["delta_ft_ns"]) == total.taxes.delta_ft_ns > step.taxes.delta_ft_ns
    assert stacks["names"][stacks["name"][0]] in stacks["num_steps"]
    assert stacks["kinds"] == ["phase", "python", "op"]


def test_a_step_is_a_file_for_pprof_and_for_speedscope(client, capture):
    client = client()

    pprof = client.get("/v1/taxbreak/steps/a/profile")
    speedscope = client.get("/v1/taxbreak/steps/a/profile?format=speedscope")

    assert b"delta_ft_exposed" in gzip.decompress(pprof.content)
    assert pprof.headers["content-type"] == "application/gzip"
    assert pprof.headers["content-disposition"] == 'attachment; filename="a.pprof.pb.gz"'
    assert speedscope.json()["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert client.get("/v1/taxbreak/steps/a/profile?format=svg").status_code == 422
    assert client.get("/v1/taxbreak/steps/none/profile").status_code == 404


def test_a_step_is_read_once_even_if_its_capture_is_evicted_then(client, capture):
    client = client()
    first = client.get("/v1/taxbreak/steps/a/timeline")
    shutil.rmtree(capture.path)

    assert client.get("/v1/taxbreak/steps/a/timeline").content == first.content


@pytest.mark.parametrize(
    ("trace", "detail"), [(None, "no such capture"), (b"junk", "its trace cannot be read: "), (b"{}", "cannot be read")]
)
def test_what_cannot_be_read_is_a_problem_in_one_line(client, put, trace, detail):
    if trace is not None:
        put("a", trace=trace)

    answer = client().get("/v1/taxbreak/steps/a/timeline")

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert detail in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def test_with_a_key_it_is_asked_for(client, capture):
    client = client(api_key=SecretStr("secret"))

    assert client.get("/v1/taxbreak/steps/a/timeline").status_code == 401
    assert client.get("/v1/taxbreak/steps/a/timeline", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_the_loop_is_free_meanwhile(client, capture):
    client = client()
    client.app.add_api_route("/other", lambda: time.monotonic())

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.get, "/v1/taxbreak/steps/a/timeline")
        answered_s = [client.get("/other").json() for _ in range(5)]
        is_before = not slow.done()
        slow.result()

    assert is_before
    assert max(answered_s) < time.monotonic()


def test_the_child_tells_of_a_capture_without_its_step(client, capture):
    os.remove(capture.path / "step.json")
    (capture.path / "trace.json.gz").write_bytes(gzip.compress(b"{}"))

    assert client().get("/v1/taxbreak/steps/a/fusion").status_code == 404
