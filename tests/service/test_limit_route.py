"""`GET limit`: the bar of each phase of a window, null with its reason, and its counters."""

from dataclasses import replace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from taxbreak_vllm.model.limit import Bar, Bound, StepLimit
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.service.metrics.collector import TaxbreakCollector


@pytest.fixture
def client(settings, clock):
    app = FastAPI()
    app.include_router(create_router(settings, now_ns=clock))
    return TestClient(app, base_url="http://test/v1/taxbreak/")


@pytest.fixture
def record_limit(results, put, analyze, make_info, clock):
    """Store a step of 200 ns, whose device worked 110 ns, with the limit and the reason given."""

    def record(step_id, limit=None, *, reason=None, phase=Phase.DECODE):
        breakdown = analyze(put(step_id, phase=phase))
        (step,) = breakdown.steps
        told = replace(breakdown, steps=(replace(step, limit=limit, limit_reason=reason),))
        results.add_step(step_id, make_info(step_id, phase=phase), told, now_ns=clock())

    return record


def limit(limit_ns=30, **fields):
    bar = Bar(
        window_ns=200,
        limit_ns=limit_ns,
        above_ns=110 - limit_ns,
        exposed_ns={"delta_ft": 40, "delta_ct": 0, "delta_kt": 4, "other": 6},
        other_idle_ns=40,
    )
    told = {"compute_ns": 10, "memory_ns": limit_ns, "floor_ns": (limit_ns, limit_ns), "bound": Bound.MEMORY}
    shares = {"mfu": 10 / 200, "mbu": limit_ns / 200}
    return StepLimit(flops=5000, bytes=900, most_bytes=900, bar=bar, **told | shares | fields)


def test_the_bar_of_a_phase_is_the_sum_of_its_steps(client, record_limit):
    record_limit("a", limit(30))
    record_limit("b", limit(50))
    record_limit("c", reason="its worker says nothing of its model", phase=Phase.PREFILL)

    found = client.get("limit").raise_for_status().json()

    assert list(found["phases"]) == ["prefill", "decode"]
    decode, prefill = found["phases"]["decode"], found["phases"]["prefill"]
    assert decode["bar"] == {
        "window_ns": 400,
        "limit_ns": 80,
        "above_ns": 140,
        "exposed_ns": {"delta_ft": 80, "delta_ct": 0, "delta_kt": 8, "other": 12},
        "other_idle_ns": 80,
        "unknown_ns": 0,
    }
    assert (decode["mfu"], decode["mbu"], decode["bound"], decode["num_steps"]) == (0.05, 0.2, "memory", 2)
    assert (prefill["mfu"], prefill["flops"], prefill["floor_ns"]) == (None, None, None)
    assert prefill["reasons"] == ["its worker says nothing of its model"]
    assert prefill["bar"]["unknown_ns"] == 110
    assert found["reason"] is None
    assert list(client.get("limit?phase=prefill").json()["phases"]) == ["prefill"]


def test_without_a_step_there_is_a_reason(client, record_limit, clock):
    assert client.get("limit").json() == {
        "phases": {}, "reason": "no step was analyzed in this window", "notes": []
    }  # fmt: skip
    record_limit("a", limit())
    clock.sleep_s(10)
    assert client.get("limit?window_s=5").json()["reason"] is not None
    assert client.get("limit?window_s=20").json()["reason"] is None


def test_a_step_that_another_version_wrote_is_unknown_and_said(client, record_limit, results):
    record_limit("a", limit())
    record_limit("b", limit())
    record_limit("c", limit())
    results._db.execute("DELETE FROM limits WHERE seq = 1")
    results._db.execute("UPDATE limits SET step_bar = '{\"bar\": 1}' WHERE seq = 2")

    decode = client.get("limit").json()["phases"]["decode"]

    assert (decode["num_steps"], decode["num_counted"]) == (3, 1)
    assert decode["reasons"] == ["analyzed by another version of taxbreak, whose limit this one cannot read"]
    assert decode["bar"]["unknown_ns"] == 2 * 110


def test_who_is_not_there_and_what_is_not_asked_so_is_a_problem(client, record_limit):
    record_limit("a", limit())

    assert client.get("limit?server_id=vllm-a").status_code == 200
    missing = client.get("limit?server_id=vllm-b")
    assert (missing.status_code, missing.json()["detail"]) == (404, "no such server: vllm-a")
    for query in ("phase=none", "window_s=0", "windows=5", f"server_id={'x' * 201}"):
        assert client.get(f"limit?{query}").status_code == 422


def test_counters_have_each_part_of_the_bar_and_what_shares_are_of(settings, spool, clock, record_limit):
    record_limit("a", limit(30))
    record_limit("b", limit(50))
    record_limit("c", reason="its worker says nothing of its model")

    families = {family.name: family for family in TaxbreakCollector.of(settings, spool, now_ns=clock).collect()}

    def values(name, label):
        return {s.labels.get(label): s.value for s in families[f"taxbreak_{name}"].samples if s.name.endswith("_total")}

    bar = values("limit_bar_seconds", "part")
    assert sum(bar.values()) == pytest.approx(600e-9)
    assert bar == pytest.approx(
        {
            **{"limit": 80e-9, "above": 140e-9, "delta_ft": 120e-9, "delta_ct": 0, "delta_kt": 12e-9, "other": 18e-9},
            **{"other_idle": 120e-9, "unknown": 110e-9},
        }
    )
    work, told = values("limit_work_seconds", "work"), values("limit_told_seconds", "phase")
    assert work == pytest.approx({"compute": 20e-9, "memory": 80e-9})
    assert work["memory"] / told["decode"] == pytest.approx(0.2)
    assert values("limit_seconds", "bound") == pytest.approx({"memory": 80e-9})
