"""Advice on a server around its steps: each rule fires on what it is about, and on nothing else."""

from dataclasses import replace

import pytest

from taxbreak_vllm.insight.server_advice import advise_server
from taxbreak_vllm.model.advice import Component, Per, Verdict
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState, IdleFrom
from taxbreak_vllm.model.frontend import SPAN_BUCKETS_NS, FrontendState, SpanHistogram, Stage
from taxbreak_vllm.model.step import Server
from taxbreak_vllm.model.worker import WorkerState

MS = 1_000_000
WORKER = WorkerState(
    server=Server(server_id="s", engine="0", device_type="cuda"), started_unix_ns=0, updated_unix_ns=0, enabled=True
)


def engine(num=1000, worker_ms=2.0, works_ahead=False, runqueue=0.0, **parts_ms):
    spent = {name: round(ms * MS) * num for name, ms in parts_ms.items()}
    exposed = {part: spent.get(part, 0) for part in EnginePart}
    between = {cause: spent.get(cause, 0) for cause in Between}
    worker_ns = round(worker_ms * MS) * num
    return EngineState(
        engine="0",
        num_iterations=num,
        iterations_ns=worker_ns + sum(exposed.values()) + sum(between.values()),
        worker_ns=worker_ns,
        exposed_ns=exposed,
        between_ns=between,
        works_ahead=works_ahead,
        idle_from=IdleFrom.WORKER_CALLS,
        runqueue_wait_ratio=runqueue,
    )


def spans(num, ms):
    return SpanHistogram(num=num, sum_ns=round(ms * MS) * num, bucket_counts=(0,) * (len(SPAN_BUCKETS_NS) + 1))


def frontend(num=100, decode_ms=100.0, **stages_ms):
    stages = {stage: spans(num, stages_ms.get(stage, 0.0)) for stage in Stage} | {Stage.DECODE: spans(num, decode_ms)}
    return FrontendState(
        num_requests=num, stages=stages, total=spans(num, decode_ms + sum(stages_ms.values())), runqueue_wait_ratio=0.0
    )


def rules(*found):
    return [advice.rule for advice in advise_server(*found).advice]


def test_a_server_whose_device_waits_for_nothing_is_told_to_change_nothing():
    report = advise_server([engine(schedule=0.05, update=0.05)], [WORKER], [frontend()])

    assert (report.verdict, report.advice, report.reasons) == (Verdict.NO_ACTION, (), ())


@pytest.mark.parametrize(
    ("parts", "rule", "amount_ms"),
    [
        ({"ipc_dispatch": 0.3, "ipc_return": 0.2}, "one-process", 0.5),
        ({"schedule": 0.6}, "work-ahead", 0.6),
        ({"update": 0.3, "post": 0.2}, "work-ahead", 0.5),
        ({"frontend": 0.5, "ipc_input": 0.1}, "api-servers", 0.6),
        ({"no_work": 9.0}, "fewer-servers", 9.0),
    ],
)
def test_what_the_device_waits_for_between_two_steps_is_the_bound(parts, rule, amount_ms):
    report = advise_server([engine(**parts)], [WORKER], [])
    (advice,) = (one for one in report.advice if one.rule == rule)

    assert report.verdict is Verdict.ACT
    assert (advice.per, advice.at_most_ns) == (Per.ITERATION, amount_ms * MS)


def test_time_without_requests_is_in_no_share_but_its_own():
    busy = advise_server([engine(schedule=0.6)], [WORKER], []).advice
    idle = advise_server([engine(schedule=0.6, no_work=1.0)], [WORKER], []).advice

    assert [one.at_most_ratio for one in idle] == [one.at_most_ratio for one in busy]


def test_a_worker_without_a_cpu_asks_for_one():
    starved = replace(WORKER, runqueue_wait_ratio=0.25)
    (advice,) = advise_server([engine()], [starved], []).advice

    assert (advice.rule, advice.component, advice.at_most_ns) == ("more-cpu", Component.MACHINE, 0.25 * 2 * MS)
    assert advice.finding == "for 25% of an iteration the worker of rank 0 is ready to run and has no CPU"


def test_an_engine_without_a_cpu_asks_for_one_as_far_as_the_device_waits_for_it():
    (advice,) = (
        one
        for one in advise_server([engine(schedule=1.0, runqueue=0.5)], [WORKER], []).advice
        if one.rule == "more-cpu"
    )

    assert advice.at_most_ns == 0.5 * MS


def test_an_api_server_without_a_cpu_asks_for_one_as_far_as_requests_wait_for_it():
    starved = replace(frontend(render=40.0), runqueue_wait_ratio=0.5)
    (advice,) = (
        one for one in advise_server([engine()], [WORKER], [starved]).advice if one.component is Component.MACHINE
    )

    assert (advice.rule, advice.per, advice.at_most_ns) == ("more-cpu-for-api", Per.REQUEST, 20 * MS)


@pytest.mark.parametrize(
    ("stages", "rule", "amount_ms"),
    [
        ({"render": 40.0}, "before-the-engine", 40.0),
        ({"serialize": 20.0, "send": 5.0}, "delivery", 25.0),
        ({"queue": 30.0}, "queue", 30.0),
    ],
)
def test_what_a_request_waits_for_is_the_bound(stages, rule, amount_ms):
    (advice,) = advise_server([engine()], [WORKER], [frontend(**stages)]).advice

    assert (advice.rule, advice.per, advice.at_most_ns) == (rule, Per.REQUEST, amount_ms * MS)
    assert advice.at_most_ratio == pytest.approx(amount_ms / (100 + amount_ms))


def test_the_worst_stage_before_the_engine_is_named():
    (advice,) = advise_server([engine()], [WORKER], [frontend(render=40.0, parse=1.0)]).advice

    assert "most of that in 'render'" in advice.finding
    assert advice.settings == ("--api-server-count 2 or more", "--renderer-num-workers 2 or more")


def test_one_process_is_named_as_the_device_s_build_of_vllm_takes_it():
    """vLLM's CPU build makes two processes of `uni`."""
    cpu = replace(WORKER, server=replace(WORKER.server, device_type="cpu"))

    found = [advise_server([engine(ipc_return=0.5)], [worker], []).advice[0].settings for worker in (WORKER, cpu)]

    assert found == [
        ("--distributed-executor-backend uni",),
        ("--distributed-executor-backend vllm.v1.executor.uniproc_executor.UniProcExecutor",),
    ]


def test_an_engine_that_takes_in_tokens_is_told_of_no_switch_that_hardly_helps():
    """Statistics are 27 of 465 µs, and tokens are grouped behind the engine (vllm/v1/engine/output_processor.py)."""
    cpu = replace(WORKER, server=replace(WORKER.server, device_type="cpu"))

    assert rules([engine(update=0.5, post=0.1)], [cpu], []) == []


def test_several_workers_need_processes_of_their_own():
    other = replace(WORKER, server=replace(WORKER.server, rank=1))

    assert rules([engine(ipc_dispatch=0.5)], [WORKER, other], []) == ["work-ahead"]


def test_an_engine_that_works_ahead_or_has_no_device_beside_it_is_not_told_to_work_ahead():
    cpu = replace(WORKER, server=replace(WORKER.server, device_type="cpu"))

    assert rules([engine(schedule=0.6, works_ahead=True)], [WORKER], []) == []
    assert rules([engine(schedule=0.6)], [cpu], []) == []


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (engine(num=99, schedule=0.6), "99 iterations were seen, fewer than 100"),
        (engine(schedule=0.6, loop=0.2), "7% of its iterations are not explained"),
        (replace(engine(works_ahead=True), exposed_ns={}, between_ns={}), "it works ahead, and what its device waited"),
        (replace(engine(schedule=0.6), off_reason="hook"), "its loop is no longer timed (hook)"),
    ],
)
def test_nothing_is_advised_on_an_account_that_does_not_close(state, reason):
    report = advise_server([state], [WORKER], [])

    assert (report.verdict, report.advice) == (Verdict.WITHHELD, ())
    assert reason in report.reasons[0]


def test_few_requests_are_no_evidence():
    assert rules([engine()], [WORKER], [frontend(num=19, render=40.0)]) == []


def test_of_two_engines_the_one_that_loses_more_speaks():
    other = replace(engine(schedule=0.9), engine="1")

    (advice,) = advise_server([engine(schedule=0.6), other], [WORKER], []).advice

    assert advice.at_most_ns == 900_000


def test_a_server_that_nobody_has_seen_is_not_judged():
    assert advise_server([], [], []).verdict is Verdict.WITHHELD
