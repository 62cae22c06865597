"""Advice over HTTP: of the newest start of a server, with what is around its steps, and what came of a change."""

import gzip
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from live_states import engine_state
from rig.program import Kernel, Op, Step, Work
from rig.program import Server as Simulated
from rig.server import run
from rig.servers import host_bound, tokens_now
from rig.trace import DEVICE, middle_of_three, to_json

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.advice import AdviceReport, Held, Per
from taxbreak_vllm.model.baseline import Environment, Floor, FloorKind, Floors, Spread
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState, IdleFrom
from taxbreak_vllm.model.forecast import Forecast, Remedy
from taxbreak_vllm.model.step import GraphMode, Phase, Server, StepHistogram
from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.service.processes.analyzer import Analyzer, load_analysis
from taxbreak_vllm.spool.layout import ANALYZED

MS = 10**6
OLD = Server(server_id="vllm-old", model_name="tiny", device_type="cuda")
NEW = Server(server_id="vllm-new", model_name="tiny", device_type="cuda")


@pytest.fixture
def get(settings, clock):
    app = FastAPI()
    app.include_router(create_router(settings, now_ns=clock))
    client = TestClient(app, base_url="http://test/v1/taxbreak/")

    def get(path="advice", **query):
        response = client.get(path, params=query)
        response.raise_for_status()
        return response.json()

    return get


def histogram(phase, num, each_ns):
    return StepHistogram(phase=phase, graph_mode=GraphMode.NONE, num_steps=num, sum_ns=num * each_ns, bucket_counts=())


def rules(report):
    return [one["rule"] for one in report["advice"]]


def test_advice_weighs_phases_by_all_timed_steps(get, spool, record, make_state):
    spool.put_state(
        make_state(server=NEW, steps=(histogram(Phase.DECODE, 900, 10**5), histogram(Phase.MIXED, 100, 10**5)))
    )
    record(8, server=NEW)
    record(8, server=NEW, phase=Phase.MIXED)

    report = get()

    assert report["verdict"] == "act"
    assert [(one["phase"], one["serving_ratio"]) for one in report["serving"]["phases"]] == [
        ("decode", 0.9),
        ("mixed", 0.1),
    ]
    assert report["serving"]["is_timed"]
    assert report["advice"][0]["phases"][0]["num_steps"] == 8
    assert get("breakdown")["advice"] == report


def test_what_was_foreseen_of_recordings_comes_with_advice_and_older_results_beside_them_still_load(
    get, record, results
):
    ratios = {"win_ratio": 0.1, "low_ratio": 0.05, "high_ratio": 0.12}
    record(2, server=NEW, capture_id="older")
    for row in results.steps():
        tree = msgspec.json.decode(results.breakdown(row.step_id))
        assert tree.pop("forecasts") == []
        results._db.execute(
            "UPDATE breakdowns SET breakdown = ? WHERE seq = (SELECT seq FROM steps WHERE step_id = ?)",
            (msgspec.json.encode(tree), row.step_id),
        )
    record(8, server=NEW, forecasts=(Forecast(change=Remedy.FASTER, phase=Phase.DECODE, plain_ns=200_000, **ratios),))

    report = get()

    by_rule = {one["rule"]: one for one in report["advice"]}
    faster, batch = by_rule["faster-core"], by_rule["batch-size"]
    assert (faster["num_steps"], faster["predicted"]["num_steps"]) == (10, 8)
    assert [faster["predicted"][end] for end in ("low_ns", "win_ns", "high_ns")] == [10_000, 20_000, 24_000]
    assert (batch["predicted"], batch["unpredicted"]) == (
        None,
        "how a step grows with its batch is not in a recording of one size",
    )
    assert get("breakdown")["advice"] == report


def test_a_capture_is_replayed_while_it_is_open_and_what_that_tells_comes_out_with_advice(
    get, spool, results, make_info, clock, tmp_path
):
    layer = (Work(20_000), Op("aten::add", (Work(10_000), Kernel(5_000, 4_000))))
    step = Step((*layer * 40, *tokens_now()))
    sample, truth = middle_of_three(run(Simulated(steps=(step,) * 5, steps_ahead=0, has_output_thread=False)), 2)
    plain_ns = round(truth.window_ns / 1.1)
    baselines = tmp_path / "baselines.sqlite3"
    with Baselines(baselines) as store:
        store.put_floors(
            Environment(device_type="cuda", device_name=DEVICE, torch="2.13", driver="13000"),
            Floors(floors=tuple(Floor(kind=FloorKind.GRAPH, spread=Spread(8_000, 1, 9), nodes=n) for n in (1, 512))),
        )
    for number in range(7):
        info = replace(
            make_info(f"step-{number}", server=replace(NEW, device_name=DEVICE, torch="2.13")),
            window_ns=truth.window_ns, plain_window_ns=plain_ns, num_plain=9, op_cost_ns=1, async_output=False,
        )  # fmt: skip
        spool.put(info, lambda path: path.write_bytes(gzip.compress(to_json(sample).encode())))
    Analyzer(spool, results, load_analysis(baselines), retention_ns=10**18, now_ns=clock).turn()

    (graphs,) = [one for one in get()["advice"] if one["rule"] == "cuda-graphs"]

    assert graphs["predicted"], (graphs["unpredicted"], graphs["at_most_ns"])
    win = graphs["predicted"]
    assert (win["change"], win["num_steps"]) == ("--graph full", 7)
    assert 0.5 * graphs["at_most_ns"] < win["low_ns"] < win["win_ns"] <= win["high_ns"] <= graphs["at_most_ns"]


def test_a_fault_in_predicting_costs_no_capture(spool, results, put, clock, monkeypatch, caplog):
    def fails(recording, breakdown):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("taxbreak_vllm.insight.foreseen.foreseen", fails)
    capture = put("a", trace=to_json(middle_of_three(run(host_bound()), 4)[0]).encode())

    Analyzer(spool, results, load_analysis(Path("none")), retention_ns=10**18, now_ns=clock).turn()

    assert (capture.path / ANALYZED).read_text() == "analyzed"
    assert "nothing is predicted" in caplog.text


def test_what_is_around_the_steps_is_advised_on_beside_them(get, spool, record, make_state, clock):
    spool.put_state(make_state(server=NEW))
    parts = dict.fromkeys(EnginePart, 0) | {EnginePart.SCHEDULE: 900 * MS}
    spool.put_engine_state(
        EngineState(
            server_id="vllm-new", engine="0", updated_unix_ns=clock(), num_iterations=1000, iterations_ns=1900 * MS,
            worker_ns=1000 * MS, exposed_ns=parts, between_ns=dict.fromkeys(Between, 0),
            idle_from=IdleFrom.WORKER_CALLS,
        )
    )  # fmt: skip
    record(8, server=NEW)

    report = get()

    assert {"batch-size", "work-ahead"} <= set(rules(report))
    assert report["advice"] == sorted(report["advice"], key=lambda one: -one["at_most_ratio"])
    assert "work-ahead" not in rules(get(phase="decode"))


def test_only_the_running_start_of_a_server_is_advised_on(get, spool, record, make_state, clock):
    spool.put_state(make_state(server=OLD))
    clock.sleep_s(60)
    spool.put_state(make_state(server=NEW))
    record(8, server=OLD, requests=4)
    before_any = get()
    record(7, server=NEW, requests=2)

    (batch,) = [one for one in get()["advice"] if one["rule"] == "batch-size"]

    assert (before_any["verdict"], before_any["reasons"]) == ("withheld", ["nothing was recorded yet"])
    assert batch["num_steps"] == 7
    assert batch["finding"].startswith("2.0 requests share a step")


def test_after_a_restart_with_other_settings_it_is_said_whether_the_change_held(get, spool, record, make_state, clock):
    two, eight = {"max_num_seqs": "2"}, {"max_num_seqs": "8"}
    spool.put_state(make_state(server=OLD, settings=two))
    record(20, server=OLD, requests=2)
    clock.sleep_s(60)
    spool.put_state(make_state(server=NEW, settings=eight, started_ns=clock()))

    (waiting,) = get()["outcomes"]
    record(20, server=NEW, requests=8, plain_ns=250_000)
    (outcome,) = get()["outcomes"]

    assert waiting["held"] == Held.NOT_ENOUGH_YET
    assert (outcome["held"], outcome["rules"], outcome["per"]) == (Held.HELD, ["batch-size"], Per.TOKEN)
    assert outcome["settings"] == {"max_num_seqs": ["2", "8"]}
    assert 1 / outcome["change"] == pytest.approx(3.2, rel=0.01)


def test_a_start_that_never_served_does_not_stand_between_the_two_that_are_compared(
    get, spool, record, make_state, clock
):
    for server, settings, plain_ns in (
        (OLD, {"max_num_seqs": "2"}, 1000_000),
        (Server(server_id="vllm-wrong", model_name="tiny", device_type="cuda"), {"max_num_seqs": "1"}, None),
        (NEW, {"max_num_seqs": "8"}, 250_000),
    ):
        clock.sleep_s(60)
        spool.put_state(make_state(server=server, settings=settings, started_ns=clock()))
        if plain_ns is not None:
            record(20, server=server, requests=2, plain_ns=plain_ns)

    (outcome,) = get()["outcomes"]

    assert (outcome["held"], outcome["settings"]) == (Held.HELD, {"max_num_seqs": ["2", "8"]})


def test_a_change_around_the_steps_is_judged_by_its_part_though_they_are_as_long_as_before(
    get, spool, record, make_state, clock
):
    def serve(server, backend, ipc_ms):
        settings = {"distributed_executor_backend": backend}
        spool.put_state(make_state(server=server, settings=settings, started_ns=clock()))
        between = {Between.IPC_RETURN: ipc_ms}
        spool.put_engine_state(
            engine_state(server_id=server.server_id, worker_ms=2.0, between=between, updated_unix_ns=clock())
        )
        record(20, server=server)

    serve(OLD, "mp", 0.5)
    clock.sleep_s(60)
    serve(NEW, "UniProcExecutor", 0.0)

    (outcome,) = get()["outcomes"]

    assert (outcome["held"], outcome["rules"], outcome["change"]) == (Held.HELD, ["one-process"], 0.0)
    assert outcome["per"] == Per.ITERATION


def test_the_steps_of_one_request_can_be_advised_on_alone(get, record):
    record(8, server=NEW)
    record(6, server=NEW, capture_id="asked")

    report = get(capture_id="asked")

    assert {one["num_steps"] for one in report["advice"]} == {6}
    assert AdviceReport(**{"verdict": report["verdict"]}).outcomes == ()
    assert get(capture_id="unknown")["verdict"] == "withheld"
