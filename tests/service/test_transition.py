"""The batch from which on a server's device decides: over HTTP, as a metric, in advice."""

import time
from dataclasses import replace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry

from taxbreak_vllm.model.breakdown import Breakdown, Calibration, Coverage, Source
from taxbreak_vllm.model.step import Batch, Phase, Server
from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.service.metrics.collector import TaxbreakCollector
from tests.service.conftest import SERVER

US = 1_000
LABELS = {"model_name": "tiny", "engine": "0", "rank": "0", "phase": "decode"}


@pytest.fixture
def get(settings, clock):
    app = FastAPI()
    app.include_router(create_router(settings, now_ns=clock))
    client = TestClient(app, base_url="http://test/v1/taxbreak/")

    def get(path="transition", **query):
        response = client.get(path, params=query)
        response.raise_for_status()
        return response.json()

    return get


@pytest.fixture
def value(settings, spool, clock):
    registry = CollectorRegistry()
    registry.register(TaxbreakCollector.of(settings, spool, now_ns=clock))
    return lambda name="taxbreak_transition_requests", labels=LABELS: registry.get_sample_value(name, labels)


@pytest.fixture
def add(results, make_step, make_info, clock):
    """Store a step of each batch from 1 to `up_to`, doubling, of a server whose device decides from `knee` on."""

    def add(*, up_to=64, knee=16, server=SERVER, phase=Phase.DECODE, tokens_each=0):
        for place in range(up_to.bit_length()):
            size = 1 << place
            is_queued = size >= knee
            plain = make_step(1000, phase=phase)
            step = replace(
                plain,
                batch=Batch(requests=size, prompt_tokens=size * tokens_each, output_tokens=size),
                hdbi=0.8 if is_queued else 0.3,
                tklqt_ns=3 * (500 * US if is_queued else 9 * US),
                taxes=replace(plain.taxes, delta_kt_ns=3 * 7 * US),
            )
            step_id = f"{server.server_id}-{phase}-{size}"
            breakdown = Breakdown(
                source=Source(model_name="tiny", server_id=server.server_id, device_type="cuda"),
                calibration=Calibration(dilation=1.0, residual=0.0, state="calibrated", plain_ns=200_000),
                coverage=Coverage(kernels=5, linked=5, events=99),
                steps=(step,),
            )
            info = replace(make_info(step_id, server=server, phase=phase), batch=step.batch)
            results.add_step(step_id, info, breakdown, now_ns=clock())

    return add


def test_the_batch_is_told_with_what_tells_it(get, add):
    add()

    found = get()

    (decode,) = found["transitions"]
    assert (found["server_id"], found["model_name"], decode["phase"]) == ("vllm-a", "tiny", "decode")
    assert (decode["between"], decode["by"], decode["reason"]) == ([8, 16], "tklqt", None)
    assert decode["turns"]["hdbi"]["between"] == [8, 16]
    assert [(each["least"], each["hdbi"]) for each in decode["buckets"]][3:5] == [(8, 0.3), (16, 0.8)]
    assert decode["buckets"][0]["tklqt_per_launch_ns"] == 9 * US
    assert decode["buckets"][0]["exposed_ratio"] == 0.25


def test_a_start_of_a_server_is_not_mixed_with_another(get, add, clock):
    other = Server(server_id="vllm-b", engine="0", rank=0, model_name="tiny", device_type="cuda")
    add(knee=4)
    clock.sleep_s(1)
    add(knee=32, server=other)

    assert get()["server_id"] == "vllm-b"
    assert get()["transitions"][0]["between"] == [16, 32]
    assert get(server_id="vllm-a")["transitions"][0]["between"] == [2, 4]


def test_a_phase_that_works_on_prompts_is_told_in_their_tokens(get, add, value, spool, make_state):
    add(phase=Phase.PREFILL, tokens_each=100)
    spool.put_state(make_state())

    (found,) = get(phase="prefill")["transitions"]

    assert (found["unit"], found["between"]) == ("prompt_tokens", [800, 1600])
    assert value("taxbreak_transition_prompt_tokens", LABELS | {"phase": "prefill"}) == 1600
    assert value(labels=LABELS | {"phase": "prefill"}) is None


def test_the_command_line_asks_a_sidecar(taxbreak, add, start_sidecar, clock):
    clock.ns = time.time_ns()
    add()

    done = taxbreak("transition", "--url", start_sidecar(), "--phase", "decode")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("decode: from 16 requests on the device decides; at 8 requests the host still did\n")


def test_without_steps_there_is_a_reason(get):
    assert get()["transitions"] == []
    assert get()["reason"] == "no step was analyzed in this window"


def test_the_metric_is_there_while_its_server_runs_and_its_load_crosses(add, value, spool, make_state, clock):
    add()
    assert value() is None

    spool.put_state(make_state())
    assert value() == 16

    clock.sleep_s(31)
    assert value() is None


def test_a_load_on_one_side_has_no_series(add, value, spool, make_state):
    add(up_to=8)
    spool.put_state(make_state())

    assert value() is None


def test_advice_on_the_batch_says_from_which_on_the_device_decides(get, add, spool, make_state):
    add(knee=32, up_to=32)
    spool.put_state(make_state())

    (advice,) = [one for one in get("advice")["advice"] if one["rule"] == "batch-size"]

    assert advice["finding"].endswith("; from 32 requests on the device decides, at 16 requests the host still did")
    assert "32 of them at most divide what a step takes" in advice["finding"]


def test_of_a_load_that_stays_the_host_s_advice_says_up_to_where(get, add, spool, make_state):
    add(knee=32, up_to=8)
    spool.put_state(make_state())

    (advice,) = [one for one in get("advice")["advice"] if one["rule"] == "batch-size"]

    assert advice["finding"].endswith("the host still decides at 8 requests, the largest batch recorded")
