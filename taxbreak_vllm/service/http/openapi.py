"""How /openapi.json describes the answers: an example of each, and the problems (RFC 9457) there may be instead."""

from http import HTTPStatus
from typing import Any

import msgspec

from taxbreak_vllm.model.advice import Advice, AdviceReport, Component, Verdict, Win
from taxbreak_vllm.model.breakdown import (
    Breakdown,
    Calibration,
    Coverage,
    DeviceTime,
    ExposedTax,
    HostTime,
    IdleTime,
    Source,
    StepBreakdown,
    Taxes,
    Tier,
)
from taxbreak_vllm.model.ceilings import CeilingSource
from taxbreak_vllm.model.energy import EngineEnergy
from taxbreak_vllm.model.engine import Between, EnginePart, IdleFrom, IterationSums
from taxbreak_vllm.model.frontend import DELIVERY, SPAN_BUCKETS_NS, FrontendState, SpanHistogram, Stage, Waterfall
from taxbreak_vllm.model.limit import Bar, Bound
from taxbreak_vllm.model.limits import LimitReport, PhaseLimit
from taxbreak_vllm.model.server import HdbiServer
from taxbreak_vllm.model.stacks import HostStacks
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server
from taxbreak_vllm.model.timeline import Lane
from taxbreak_vllm.model.transition import Sign, SizeBucket, SizeUnit, Transition, Transitions, Turn
from taxbreak_vllm.model.whatif import Prediction
from taxbreak_vllm.model.worker import Control, ControlState, WorkerControl
from taxbreak_vllm.output.page.named import NamedChains, NamedTimeline
from taxbreak_vllm.service.http.problems import MEDIA_TYPE
from taxbreak_vllm.service.http.responses import (
    AnalyzerUse,
    CaptureOutcome,
    CapturesPage,
    CaptureView,
    EngineLoop,
    GateOutcome,
    Iterations,
    Requests,
    RequestWaterfall,
    ResultsUse,
    SpoolUse,
    Status,
    StepsPage,
    StepWhatIf,
    TrafficFile,
    TrafficFiles,
    WhatIfs,
    Worker,
)
from taxbreak_vllm.service.results.rows import StepRow

_YEAR_2025_NS = 1_750_000_000 * 10**9
_SERVER = Server(server_id="vllm-a", model_name="tiny-llama", device_type="cuda", device_name="NVIDIA H200")
_STEP = StepBreakdown(
    name="vllm-a-0-1000",
    phase=Phase.DECODE,
    graph_mode=GraphMode.FULL,
    batch=Batch(requests=4, prompt_tokens=0, output_tokens=4),
    window_ns=5_000_000,
    host=HostTime(
        python_ns=2_000_000, dispatch_ns=1_500_000, launch_ns=600_000, runtime_ns=200_000, blocked_ns=700_000
    ),
    device=DeviceTime(
        window_ns=5_000_000,
        active_ns=2_000_000,
        kernel_sum_ns=2_100_000,
        idle_ns=3_000_000,
        idle=IdleTime(host_ns=2_900_000, queue_ns=100_000),
    ),
    taxes=Taxes(
        delta_ft_ns=3_500_000,
        delta_ct_ns=300_000,
        delta_kt_ns=200_000,
        delta_kt_excess_ns=0,
        orchestration_ns=4_000_000,
    ),
    exposed=ExposedTax(delta_ft_ns=2_500_000, delta_ct_ns=200_000, delta_kt_ns=150_000, other_ns=50_000),
    hdbi=1 / 3,
    launches=100,
    kernels=100,
    unique_kernels=12,
)
_BREAKDOWN = Breakdown(
    source=Source(model_name="tiny-llama", server_id="vllm-a", engine="0", rank=0),
    calibration=Calibration(dilation=1.8, residual=0.1, state="calibrated"),
    coverage=Coverage(activities=100, kernels=100, linked=100, launches=100, replay={Tier.TRACE: 1.0}),
    steps=(_STEP,),
    total=_STEP,
    hdbi_server=HdbiServer(total=0.29, phases={Phase.DECODE: 0.29}),
)
_CAPTURE = CaptureView(
    id="0f0e6f7d3c3b4f0f9d7c3a5b1e2d4c6f",
    status="running",
    server_id="vllm-a",
    steps=4,
    phase=Phase.DECODE,
    stacks=False,
    recorded=3,
    analyzed=1,
    failed=0,
    created_unix_ns=_YEAR_2025_NS,
    expires_unix_ns=_YEAR_2025_NS + 30 * 10**9,
)
_ROW = StepRow(
    step_id="vllm-a-0-1000",
    server_id="vllm-a",
    model_name="tiny-llama",
    engine="0",
    rank=0,
    phase=Phase.DECODE,
    graph_mode=GraphMode.FULL,
    started_unix_ns=_YEAR_2025_NS,
    capture_id=_CAPTURE.id,
    window_ns=_STEP.window_ns,
    active_ns=_STEP.device.active_ns,
    exposed_ns=_STEP.device.idle.host_ns or 0,
    delta_ft_ns=_STEP.taxes.delta_ft_ns,
    delta_ct_ns=_STEP.taxes.delta_ct_ns,
    delta_kt_ns=_STEP.taxes.delta_kt_ns,
    orchestration_ns=_STEP.taxes.orchestration_ns,
    hdbi=_STEP.hdbi,
    dilation=1.8,
    replay={Tier.TRACE: 1.0},
)
_STATUS = Status(
    version="0.1.0",
    now_unix_ns=_YEAR_2025_NS,
    window_s=900,
    servers=[
        Worker(
            server=_SERVER,
            started_unix_ns=_YEAR_2025_NS - 3600 * 10**9,
            updated_unix_ns=_YEAR_2025_NS,
            enabled=True,
            num_samples=12,
            serving_ns=3600 * 10**9,
            overhead_ns=10**8,
            live=True,
        )
    ],
    spool=SpoolUse(captures=12, pending=0, bytes=1_200_000),
    results=ResultsUse(steps=12),
    analyzer=AnalyzerUse(restarts=0),
    energy=[
        EngineEnergy(
            server_id="vllm-a",
            engine="0",
            window_ns=10 * 10**9,
            joules=4200.0,
            output_tokens=12_000,
            joules_per_token=0.35,
        )
    ],
)

_CONTROL = ControlState(
    server_id="vllm-a",
    applied=True,
    control=Control(
        control_id=_CAPTURE.id,
        enabled=True,
        sample_every=500,
        overhead_budget_ratio=0.005,
        updated_unix_ns=_YEAR_2025_NS,
    ),
    workers=(WorkerControl(engine="0", rank=0, enabled=True, sample_every=500, overhead_budget_ratio=0.005),),
)

_LOOP = EngineLoop(
    server_id="vllm-a",
    engine="0",
    model_name="tiny-llama",
    num_iterations=1000,
    iterations_ns=2_894_000_000,
    worker_ns=2_301_000_000,
    busy_ns={EnginePart.SCHEDULE: 55_000_000, EnginePart.DISPATCH: 159_000_000, EnginePart.LOOP: 36_000_000},
    exposed_ns={EnginePart.SCHEDULE: 55_000_000, EnginePart.DISPATCH: 119_000_000, EnginePart.LOOP: 28_000_000},
    between_ns={Between.IPC_DISPATCH: 49_000_000, Between.IPC_RETURN: 165_000_000, Between.NO_WORK: 177_000_000},
    phases={
        Phase.DECODE: IterationSums(
            num=950,
            total_ns=2_510_000_000,
            worker_ns=2_130_000_000,
            exposed_ns={EnginePart.SCHEDULE: 51_000_000, EnginePart.DISPATCH: 112_000_000, EnginePart.LOOP: 26_000_000},
            between_ns={Between.IPC_DISPATCH: 44_000_000, Between.IPC_RETURN: 147_000_000},
        )
    },
    idle_from=IdleFrom.WORKER_CALLS,
    runqueue_wait_ratio=0.02,
    unexplained_ratio=0.0103,
)


def _spans(duration_ns: int) -> SpanHistogram:
    index = sum(bound_ns < duration_ns for bound_ns in SPAN_BUCKETS_NS)
    return SpanHistogram(
        num=1, sum_ns=duration_ns, bucket_counts=tuple(int(i == index) for i in range(len(SPAN_BUCKETS_NS) + 1))
    )


_STAGES_NS = {
    Stage.RECEIVE: 200_000,
    Stage.PARSE: 300_000,
    Stage.RENDER: 41_000_000,
    Stage.SUBMIT: 500_000,
    Stage.IPC_INPUT: 400_000,
    Stage.QUEUE: 600_000,
    Stage.QUEUE_KV: 0,
    Stage.QUEUE_ENCODER: 0,
    Stage.QUEUE_GRAMMAR: 0,
    Stage.QUEUE_REMOTE_KV: 0,
    Stage.PREFILL: 19_000_000,
    Stage.DECODE: 80_000_000,
    Stage.IPC_OUTPUT: 400_000,
    Stage.DETOKENIZE: 100_000,
    Stage.SERIALIZE: 300_000,
    Stage.SEND: 200_000,
}
_DELIVERY_NS = {stage: _STAGES_NS[stage] for stage in DELIVERY}
_TOTAL_NS = sum(_STAGES_NS.values())
_TTFT_NS = sum(ns for stage, ns in _STAGES_NS.items() if stage is not Stage.DECODE)
_FRONTEND = FrontendState(
    server_id="vllm-a",
    api="0",
    model_name="tiny-llama",
    started_unix_ns=_YEAR_2025_NS - 3600 * 10**9,
    updated_unix_ns=_YEAR_2025_NS,
    num_requests=1,
    stages={stage: _spans(ns) for stage, ns in _STAGES_NS.items()},
    ttft=_spans(_TTFT_NS),
    total=_spans(_TOTAL_NS),
    tokens={stage: _spans(ns) for stage, ns in _DELIVERY_NS.items()},
    loop_lag=_spans(150_000),
    runqueue_wait_ratio=0.01,
)
_WATERFALL = Waterfall(
    number=0x5F3759DF,
    engine="0",
    started_unix_ns=_YEAR_2025_NS,
    total_ns=_TOTAL_NS,
    ttft_ns=_TTFT_NS,
    stages_ns=_STAGES_NS,
    first_token_ns=_DELIVERY_NS,
    num_prompt_tokens=900,
    num_output_tokens=16,
    is_streamed=True,
)
_REQUESTS = Requests(api_servers=[_FRONTEND], waterfalls=[RequestWaterfall.of(_WATERFALL, _FRONTEND)], reason=None)
_ADVICE = AdviceReport(
    verdict=Verdict.ACT,
    advice=(
        Advice(
            rule="cuda-graphs",
            component=Component.FRAMEWORK,
            phase=Phase.DECODE,
            finding="929 launches a step, none of them a graph; for up to 58% of the step it waits",
            change="Replay the step as CUDA graphs: one launch instead of hundreds.",
            settings=("no --enforce-eager",),
            at_most_ns=2_900_000,
            at_most_ratio=0.58,
            refuted_by="graph_mode stays NONE after the change",
            predicted=Win(
                win_ns=2_100_000,
                low_ns=1_800_000,
                high_ns=2_300_000,
                win_ratio=0.42,
                low_ratio=0.36,
                high_ratio=0.46,
                change="--graph full",
                num_steps=12,
            ),
        ),
    ),
)
_LIMIT = LimitReport(
    phases={
        Phase.DECODE: PhaseLimit(
            num_steps=12,
            num_counted=12,
            num_bounded=12,
            bar=Bar(
                window_ns=60_000_000,
                limit_ns=14_000_000,
                above_ns=10_000_000,
                exposed_ns={
                    "delta_ft": 25_000_000,
                    "delta_ct": 2_000_000,
                    "delta_kt": 1_500_000,
                    "other": 500_000,
                    "engine": 5_000_000,
                },
                other_idle_ns=2_000_000,
            ),
            flops=720_000_000_000,
            bytes=46_900_000_000,
            most_bytes=46_900_000_000,
            compute_ns=728_000,
            memory_ns=14_000_000,
            floor_ns=(14_000_000, 14_000_000),
            bound=Bound.MEMORY,
            bound_ns={Bound.MEMORY: 14_000_000},
            mfu=0.0121,
            mbu=0.2333,
            flops_per_s=3.0e13,
            bytes_per_s=1.954e12,
            sources={"bf16": CeilingSource.TABLE, "bytes": CeilingSource.TABLE},
            ceilings=("NVIDIA H100 datasheet (SXM)",),
        )
    },
)
_HOST_LANE = Lane(
    title="host by component",
    kinds=("python", "dispatch"),
    start_ns=(0, 3_000_000),
    length_ns=(3_000_000, 2_000_000),
    kind=(0, 1),
    name=(-1, -1),
)
_TIMELINE = NamedTimeline(
    step="vllm-a-0-1000",
    device_type="cuda",
    window_ns=5_000_000,
    device_window_ns=5_000_000,
    drawn_ns=5_000_000,
    lanes=(_HOST_LANE,),
    names=(),
    words=(),
)
_FUSION = NamedChains(
    min_score=1.0,
    kernels=100,
    unlinked=0,
    launches=100,
    kernels_after=100,
    launches_after=100,
    ideal_speedup=1.0,
    by_length=(),
    chains=(),
    words={},
)
_STACKS = HostStacks(
    title="vllm-a-0-1000",
    names=("decode", "[python]", "aten::linear", "aten::addmm"),
    parent=(-1, 0, 0, 2),
    name=(0, 1, 2, 3),
    kind=(0, 1, 2, 2),
    delta_ft_ns=(0, 2_000_000, 500_000, 1_000_000),
    exposed_ns=(0, 1_800_000, 200_000, 900_000),
    num_steps={"decode": 1},
)
_WHATIF = StepWhatIf(
    step_id="vllm-a-0-1000",
    server_id="vllm-a",
    phase=Phase.DECODE,
    path="/var/tmp/taxbreak/vllm-a/0/vllm-a-0-1000",
    change="--host 0.7",
    gates=(
        GateOutcome(
            name="reproduction", value=0.001, limit=0.01, reason="the end as constants alone give it", passes=True
        ),
    ),
    steps=(
        Prediction(
            phase=Phase.DECODE,
            steps=1,
            observed_ns=5_000_000,
            predicted_ns=3_700_000,
            low_ns=3_600_000,
            high_ns=3_800_000,
            host_free_ns=2_000_000,
            kernels_free_ns=4_300_000,
        ),
    ),
    refuted_by="recorded with --host 0.7, the same steps take less than 3.600 or more than 3.800 ms",
    command="taxbreak diff /var/tmp/taxbreak/vllm-a/0/vllm-a-0-1000 AFTER",
)

_TRANSITIONS = Transitions(
    transitions=(
        Transition(
            phase=Phase.DECODE,
            unit=SizeUnit.REQUESTS,
            buckets=tuple(
                SizeBucket(
                    least=size,
                    most=size,
                    num_steps=12,
                    window_ns=window_ns,
                    tklqt_per_launch_ns=queued_ns,
                    hdbi=hdbi,
                    exposed_ratio=waits,
                    limit_ratio=least,
                )
                for size, window_ns, queued_ns, hdbi, waits, least in (
                    (8, 5_000_000, 8_100, 0.33, 0.58, 0.21),
                    (16, 5_100_000, 9_400, 0.46, 0.37, 0.22),
                    (24, 6_900_000, 310_000, 0.61, 0.04, 0.19),
                )
            ),
            between=(16, 24),
            by=Sign.TKLQT,
            turns={Sign.TKLQT: Turn(between=(16, 24)), Sign.HDBI: Turn(between=(16, 24))},
        ),
    ),
    model_name="tiny-llama",
    server_id="vllm-a",
)

EXAMPLES: dict[type, Any] = {  # FastAPI leaves nulls out, so there is none in what is required
    Status: msgspec.to_builtins(_STATUS),
    Iterations: msgspec.to_builtins(Iterations(engines=[_LOOP])),
    Requests: msgspec.to_builtins(_REQUESTS),
    Breakdown: _BREAKDOWN.to_builtins(),
    NamedTimeline: msgspec.to_builtins(_TIMELINE),
    NamedChains: msgspec.to_builtins(_FUSION),
    HostStacks: msgspec.to_builtins(_STACKS),
    WhatIfs: {"answers": [{name: value for name, value in _WHATIF.to_builtins().items() if value is not None}]},
    AdviceReport: msgspec.to_builtins(_ADVICE),
    LimitReport: msgspec.to_builtins(_LIMIT),
    Transitions: _TRANSITIONS.to_builtins(),
    TrafficFiles: msgspec.to_builtins(
        TrafficFiles(server_id="vllm-a", files=[TrafficFile(name="engine-0-00000000.jsonl.gz", bytes=48_213)])
    ),
    StepsPage: msgspec.to_builtins(StepsPage(steps=[_ROW], next=_ROW.step_id)),
    CaptureView: msgspec.to_builtins(_CAPTURE),
    CaptureOutcome: msgspec.to_builtins(_CAPTURE),
    ControlState: msgspec.to_builtins(_CONTROL),
    CapturesPage: msgspec.to_builtins(CapturesPage(captures=[_CAPTURE], next=_CAPTURE.id)),
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}, "description": "what is wrong with the request"},
        "servers": {"type": "array", "items": {"type": "string"}, "description": "the servers that can be asked"},
        "capture_id": {"type": "string", "description": "the capture that is running"},
    },
}
_ERRORS = {
    HTTPStatus.BAD_REQUEST: "the body is no JSON",
    HTTPStatus.UNAUTHORIZED: "the key is missing or wrong",
    HTTPStatus.FORBIDDEN: "the key only reads, or another site's page sent this with the page's session",
    HTTPStatus.NOT_FOUND: "there is no such thing, or no more",
    HTTPStatus.CONFLICT: "a capture is running, or has ended, or several servers could be meant",
    HTTPStatus.UNPROCESSABLE_ENTITY: "the request has not the form described here, or a query parameter of no meaning",
    HTTPStatus.TOO_MANY_REQUESTS: "more captures than TAXBREAK_CAPTURES_PER_MINUTE, or too many wrong keys",
    HTTPStatus.SERVICE_UNAVAILABLE: "the results cannot be read, or no running server can be asked",
}
_HEADERS = {
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate", "string"),
    HTTPStatus.TOO_MANY_REQUESTS: ("Retry-After", "integer"),
    HTTPStatus.ACCEPTED: ("Location", "string"),
}


def errors(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Describe answers that are problems (RFC 9457), for the `responses` of a route."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        text = _ERRORS[status]
        example = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": text}
        content = {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA, "example": example}}
        found[int(status)] = {"description": text, "content": content, **_headers(status)}
    return found


def answer(kind: type, *, status: HTTPStatus = HTTPStatus.OK) -> dict[int | str, dict[str, Any]]:
    """Describe the answer asked for, with an example."""
    return {int(status): {"content": {"application/json": {"example": EXAMPLES[kind]}}, **_headers(status)}}


def _headers(status: HTTPStatus) -> dict[str, Any]:
    if status not in _HEADERS:
        return {}
    name, kind = _HEADERS[status]
    return {"headers": {name: {"schema": {"type": kind}, "required": True}}}
