"""Servers of another version write into the spool: what they tell by names not known here is told on by these names."""

import dataclasses

import pytest
from fastapi.testclient import TestClient
from live_states import engine_state, frontend_state, waterfall

from taxbreak_vllm.insight.second import device_second
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.frontend import WAITS, Stage
from taxbreak_vllm.output.text.second import second_account
from taxbreak_vllm.service.app import create_app
from taxbreak_vllm.service.processes.analyzer import Analyzer
from taxbreak_vllm.service.processes.supervisor import Supervisor

NEWER = {"render": "tokenize", "send": "flush", "schedule": "plan", "ipc_return": "shm_return", "worker_calls": "cupti"}
WORKING = engine_state(exposed={EnginePart.SCHEDULE: 2}, between={Between.IPC_RETURN: 1})
REQUESTS = [waterfall(number, render=41, send=7) for number in range(20)]


@pytest.fixture
def write(spool, clock, results, analyze):
    """Publish an engine and an API server, put other names into their files, and have them counted."""

    def write(names):
        spool.put_engine_state(dataclasses.replace(WORKING, updated_unix_ns=clock()))
        spool.put_frontend_state(frontend_state(*REQUESTS, updated_unix_ns=clock()))
        spool.put_waterfalls("vllm-a", "0", REQUESTS)
        for path in spool.root.rglob("*.json"):
            text = path.read_text()
            for ours, theirs in names.items():
                text = text.replace(f'"{ours}"', f'"{theirs}"')
            path.write_text(text)
        Analyzer(spool, results, analyze, retention_ns=10**15, now_ns=clock).turn()

    return write


@pytest.fixture
def client(settings, clock, analyzer_command):
    return TestClient(create_app(settings, supervisor=Supervisor(analyzer_command), now_ns=clock))


def test_an_older_sidecar_shows_and_counts_a_newer_server_s_stages(client, write):
    write(NEWER)

    page, metrics = client.get("/").text, client.get("/metrics").text
    answers = client.get("/v1/taxbreak/requests").text + client.get("/v1/taxbreak/iterations").text

    for theirs in ("tokenize", "flush", "plan", "shm_return"):
        assert f"{theirs}, not known here" in page
        assert f'="{theirs}"' in metrics
        assert f'"{theirs}":' in answers
    assert "tokenize, not known here</th><td>41.00 ms</td>" in page


def test_nothing_of_a_request_and_of_an_iteration_is_lost(spool, write):
    write(NEWER)

    (state,) = spool.engine_states()
    second = device_second(state, {})
    (request, *_) = spool.waterfalls("vllm-a", "0")
    assert second.total_ns == state.iterations_ns == WORKING.iterations_ns
    assert request.total_ns == sum(request.stages_ns.values()) == REQUESTS[0].total_ns
    (_, table) = second_account([second])
    assert ("plan, not known here", "2.00 ms", "22.2%") in table.rows


def test_a_newer_sidecar_reads_an_older_server_that_has_fewer_stages(client, spool, write):
    fewer = [stage for stage in Stage if stage not in WAITS]
    older = [dataclasses.replace(r, stages_ns={s: r.stages_ns[s] for s in fewer}) for r in REQUESTS]
    write({})
    spool.put_waterfalls("vllm-a", "0", older)

    assert "queue: KV blocks</th><td>0.0 µs</td>" in client.get("/").text
    assert client.get("/v1/taxbreak/requests").json()["waterfalls"][0]["stages_ns"].keys() == set(fewer)
