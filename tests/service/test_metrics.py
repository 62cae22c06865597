import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from live_states import MS, engine_state, frontend_state, spans, waterfall
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Environment, Floor, FloorKind, Floors, Spread
from taxbreak_vllm.model.breakdown import (
    Breakdown,
    Calibration,
    Coverage,
    DeviceTime,
    ExposedTax,
    FamilyShare,
    IdleTime,
    Source,
    StepBreakdown,
    Tier,
)
from taxbreak_vllm.model.engine import Between, EnginePart, EngineState
from taxbreak_vllm.model.evidence import Figure
from taxbreak_vllm.model.frontend import DELIVERY, SPAN_BUCKETS_NS, SpanHistogram, Stage
from taxbreak_vllm.model.limit import Bar, Bound, StepLimit
from taxbreak_vllm.model.step import GraphMode, Phase, Server
from taxbreak_vllm.service.metrics.collector import TaxbreakCollector
from taxbreak_vllm.service.processes.analyzer import Analyzer
from taxbreak_vllm.trace.kernels import Family

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
TINY = {"model_name": "tiny", "engine": "0", "rank": "0"}
DECODE = TINY | {"phase": "decode"}
BUILD = {
    "vllm": "0.32.0",
    "torch": "2.13.0",
    "cuda": "12.9",
    "settings_hash": "62bd27feb1",
    "gpu": "NVIDIA H100",
    "uuid": "GPU-0f1e",
    "host": "node-7",
}


@pytest.fixture
def registry(settings, spool, clock):
    registry = CollectorRegistry()
    registry.register(TaxbreakCollector(settings.results_path, spool, window_ns=900 * 10**9, now_ns=clock))
    return registry


@pytest.fixture
def turn(spool, results, analyze, clock):
    return Analyzer(spool, results, analyze, retention_ns=86400 * 10**9, now_ns=clock).turn


@pytest.fixture
def value(registry):
    def value(name, labels=DECODE, **more):
        return registry.get_sample_value(f"taxbreak_{name}", labels | more)

    return value


def test_sums_of_sampled_steps(put, turn, value):
    put("a", 10**6)
    put("b", 10**6)
    turn()

    assert value("sampled_steps_total") == 2
    assert value("orchestration_seconds_total", component="delta_ft") == pytest.approx(0.12)
    assert value("orchestration_seconds_total", component="delta_ct") == pytest.approx(0.04)
    assert value("orchestration_seconds_total", component="delta_kt") == pytest.approx(0.02)
    assert value("exposed_orchestration_seconds_total", component="delta_ft") == pytest.approx(0.08)
    assert value("exposed_orchestration_seconds_total", component="other") == pytest.approx(0.012)
    assert value("device_active_seconds_total") == pytest.approx(0.22)
    assert value("device_idle_seconds_total", cause="host") == pytest.approx(0.1)
    assert value("device_idle_seconds_total", cause="blocked") == 0
    assert value("tklqt_seconds_total") == pytest.approx(0.014)
    assert value("launches_total") == 6
    assert value("kernels_total", family="gemm") == 6
    assert value("sampled_output_tokens_total") == 8


def test_a_step_without_a_figure_is_counted_and_in_no_sum_of_it(results, make_info, make_step, value):
    step = make_step(10**6)
    unknown = replace(
        step,
        hdbi=None,
        device=replace(step.device, idle_ns=None, idle=IdleTime.unknown()),
        exposed=ExposedTax.unknown(),
    )
    for name, one in (("a", step), ("b", unknown)):
        results.add_step(name, make_info(name), Breakdown(source=Source(), steps=(one,)), now_ns=0)

    assert [value("withheld_steps_total", figure=figure) for figure in Figure] == [1, None, 1, 1]
    assert value("sampled_steps_total") == 2
    assert value("device_active_seconds_total") == pytest.approx(0.11)
    assert value("device_idle_seconds_total", cause="host") == pytest.approx(0.05)


def test_plain_steps_make_counters_and_a_histogram(spool, make_state, turn, value):
    spool.put_state(make_state(num_steps=10, step_ns=300_000))
    turn()

    assert value("steps_total", graph_mode=GraphMode.FULL) == 10
    assert value("step_seconds_count") == 10
    assert value("step_seconds_sum") == pytest.approx(0.003)
    assert value("step_seconds_bucket", le="0.0002") == 0
    assert value("step_seconds_bucket", le="0.0005") == 10
    assert value("step_seconds_bucket", le="+Inf") == 10


def test_the_times_from_step_to_step_make_a_histogram_of_their_own(spool, make_state, turn, value):
    state = make_state(num_steps=10, step_ns=300_000)
    (steps,) = state.steps
    spool.put_state(replace(state, iterations=(replace(steps, num_steps=4, sum_ns=8_000_000),)))
    turn()

    assert value("iteration_seconds_sum") == pytest.approx(0.008)
    assert value("iteration_seconds_bucket", le="+Inf") == sum(steps.bucket_counts)
    assert value("steps_total", graph_mode=GraphMode.FULL) == 10


def test_on_cpu_the_unknown_is_absent_and_the_true_zero_present(put, turn, value):
    put("a", is_cpu=True)
    turn()

    assert value("orchestration_seconds_total", component="delta_ct") is None
    assert value("exposed_orchestration_seconds_total", component="delta_ct") is None
    assert value("tklqt_seconds_total") is None
    assert value("launches_total") is None
    assert value("orchestration_seconds_total", component="delta_kt") == 0


def test_nothing_known_has_no_family(registry):
    assert {family.name for family in registry.collect()} == {
        "taxbreak_spool_bytes",
        "taxbreak_analysis_lag_seconds",
        "taxbreak_build",
    }


def test_gauges_of_the_window(put, spool, make_state, turn, value):
    spool.put_state(make_state(overhead_ns=3, serving_ns=300))
    put("a", 1)
    put("b", 2)
    turn()

    assert value("hdbi") == pytest.approx(330 / 600)
    assert value("profiler_dilation_ratio") == 1.5
    assert value("replay_coverage_ratio", tier="trace") == 1
    assert value("capture_overhead_ratio", TINY) == pytest.approx(0.01)


def test_gauges_go_with_their_server_and_counters_stay(put, spool, make_state, turn, value, clock):
    spool.put_state(make_state(overhead_ns=3, serving_ns=300))
    gauges = (("hdbi", DECODE), ("profiler_dilation_ratio", DECODE), ("capture_overhead_ratio", TINY))
    put("a")
    turn()
    assert None not in [value(*gauge) for gauge in gauges]

    clock.sleep_s(31)

    assert [value(*gauge) for gauge in gauges] == [None] * 3
    assert value("sampled_steps_total") == 1
    assert value("steps_total", graph_mode=GraphMode.FULL) == 10


def test_gauges_go_when_the_window_is_empty(put, spool, make_state, turn, value, clock):
    put("a")
    turn()
    clock.sleep_s(901)
    spool.put_state(make_state(updated_unix_ns=clock()))

    assert value("hdbi") is None
    assert value("sampled_steps_total") == 1


def test_lost_samples_are_counted_wherever_they_were_lost(put, spool, make_state, turn, value):
    spool.put_state(make_state(dropped={"backlog": 2, "analysis_failed": 1}))
    put("bad", trace=b"junk")
    turn()

    assert value("samples_dropped_total", TINY, reason="backlog") == 2
    assert value("samples_dropped_total", TINY, reason="analysis_failed") == 2


def test_the_lag_is_the_age_of_the_oldest_capture_that_waits(put, turn, registry, spool, clock):
    capture = put("a")
    clock.ns = capture.path.stat().st_mtime_ns + 5 * 10**9

    assert registry.get_sample_value("taxbreak_analysis_lag_seconds") == pytest.approx(5)
    turn()
    assert registry.get_sample_value("taxbreak_analysis_lag_seconds") == 0
    assert registry.get_sample_value("taxbreak_spool_bytes") == spool.size_bytes() > 0


def test_launch_floors_are_those_of_where_a_running_worker_is(spool, make_state, settings, clock):
    collector = TaxbreakCollector.of(settings, spool, now_ns=clock)
    registry = CollectorRegistry()
    registry.register(collector)
    floors = [(FloorKind.KERNEL, 0, 4500), (FloorKind.GRAPH, 1, 7000), (FloorKind.GRAPH, 101, 57_000)]
    here = Environment(device_type="cuda", device_name="", torch="2.13")

    def found():
        kinds = ("kernel", "graph", "graph_node")
        return [registry.get_sample_value("taxbreak_launch_floor_seconds", TINY | {"kind": kind}) for kind in kinds]

    spool.put_state(make_state())
    assert found() == [None] * 3
    with Baselines(settings.baselines_path) as baselines:
        baselines.put_floors(
            here,
            Floors(floors=tuple(Floor(kind=kind, nodes=nodes, spread=Spread(ns, 1, 9)) for kind, nodes, ns in floors)),
        )
    assert found() == pytest.approx([4.5e-6, 6.5e-6, 0.5e-6])

    clock.sleep_s(31)
    assert found() == [None] * 3


def test_baselines_that_cannot_be_read_cost_no_other_series(spool, make_state, settings, clock):
    spool.put_state(make_state(overhead_ns=1, serving_ns=10))
    settings.baselines_path.write_bytes(b"junk" * 1000)

    names = {family.name for family in TaxbreakCollector.of(settings, spool, now_ns=clock).collect()}

    assert "taxbreak_capture_overhead_ratio" in names
    assert "taxbreak_launch_floor_seconds" not in names


ENGINE = {"model_name": "tiny", "engine": "0"}
LOOP = EngineState(
    server_id="vllm-a",
    engine="0",
    model_name="tiny",
    started_unix_ns=1,
    num_iterations=4,
    iterations_ns=10_000_000,
    worker_ns=6_000_000,
    busy_ns={part: 1_000_000 for part in EnginePart},
    exposed_ns={part: 100_000 for part in EnginePart},
    between_ns={Between.IPC_DISPATCH: 300_000, Between.IPC_RETURN: 1_000_000, Between.NO_WORK: 2_000_000},
    num_unjoined=2,
    num_left_out=50,
    num_lost=1,
)


def test_what_passes_between_steps_is_counted_by_part_and_once(spool, turn, value, clock):
    for state in (LOOP, LOOP, replace(LOOP, num_iterations=6, busy_ns=LOOP.busy_ns | {EnginePart.UPDATE: 3_000_000})):
        spool.put_engine_state(replace(state, updated_unix_ns=clock()))
        turn()

    assert value("engine_iterations_total", ENGINE) == 6
    assert value("engine_iteration_seconds_total", ENGINE) == pytest.approx(0.01)
    assert value("engine_left_out_iterations_total", ENGINE) == 50
    assert value("engine_unjoined_steps_total", ENGINE) == 3
    assert value("engine_busy_seconds_total", ENGINE, part="update") == pytest.approx(0.003)
    assert value("engine_busy_seconds_total", ENGINE, part="schedule") == pytest.approx(0.001)
    assert value("engine_exposed_seconds_total", ENGINE, part="loop") == pytest.approx(0.0001)
    assert value("idle_between_steps_seconds_total", ENGINE, cause="no_work") == pytest.approx(0.002)
    assert value("server_unexplained_ratio", ENGINE) == pytest.approx(0.1 / 8)


def test_an_engine_that_was_started_anew_counts_on_and_one_that_ended_has_no_gauge(spool, turn, value, clock):
    spool.put_engine_state(replace(LOOP, updated_unix_ns=clock()))
    turn()
    spool.put_engine_state(replace(LOOP, started_unix_ns=2, num_iterations=1, updated_unix_ns=clock()))
    turn()

    assert value("engine_iterations_total", ENGINE) == 5
    clock.sleep_s(31)
    assert value("engine_iterations_total", ENGINE) == 5
    assert value("server_unexplained_ratio", ENGINE) is None


def test_of_an_engine_that_works_ahead_nothing_is_called_exposed(spool, turn, value, clock):
    spool.put_engine_state(replace(LOOP, works_ahead=True, exposed_ns={}, between_ns={}, updated_unix_ns=clock()))
    turn()

    assert value("engine_busy_seconds_total", ENGINE, part="schedule") == pytest.approx(0.001)
    assert value("engine_exposed_seconds_total", ENGINE, part="schedule") is None
    assert value("server_unexplained_ratio", ENGINE) is None


MODEL = {"model_name": "tiny"}
API = frontend_state(waterfall(render=41), waterfall(render=3), num_failed=2, num_unknown=1)


def test_requests_are_counted_by_stage_and_once(spool, turn, value, clock):
    for state in (API, API, replace(API, stages=API.stages | {Stage.RENDER: spans(41 * MS, 3 * MS, 3 * MS)})):
        spool.put_frontend_state(replace(state, updated_unix_ns=clock()))
        turn()

    assert value("request_stage_seconds_count", MODEL, stage="render") == 3
    assert value("request_stage_seconds_sum", MODEL, stage="render") == pytest.approx(0.047)
    assert value("request_stage_seconds_bucket", MODEL, stage="render", le="0.005") == 2
    assert value("request_stage_seconds_bucket", MODEL, stage="render", le="0.05") == 3
    assert value("request_stage_seconds_count", MODEL, stage="decode") == 2
    assert value("request_seconds_sum", MODEL) == pytest.approx(API.total.sum_ns / 1e9)
    assert value("time_to_first_byte_seconds_count", MODEL) == 2
    assert value("api_token_seconds_count", MODEL, part="detokenize") == 2
    assert value("event_loop_lag_seconds_count", MODEL) == 1
    assert value("requests_not_followed_total", MODEL, reason="failed") == 2
    assert value("requests_not_followed_total", MODEL, reason="lost") == 0


def test_stages_add_up_to_the_requests(spool, turn, value, clock):
    spool.put_frontend_state(replace(API, updated_unix_ns=clock()))
    turn()

    stages = sum(value("request_stage_seconds_sum", MODEL, stage=stage) for stage in Stage)
    assert stages == pytest.approx(value("request_seconds_sum", MODEL))


def test_an_api_server_that_was_started_anew_counts_on_and_two_of_one_model_count_together(spool, turn, value, clock):
    for state in (API, replace(API, api="1"), replace(API, started_unix_ns=2)):
        spool.put_frontend_state(replace(state, updated_unix_ns=clock()))
        turn()
    clock.sleep_s(31)

    assert value("request_seconds_count", MODEL) == 6
    assert value("runqueue_wait_ratio", MODEL, process="api-0") is None


def test_histograms_that_are_missing_or_of_other_buckets_have_no_series_and_spoil_no_other(spool, turn, value, clock):
    other = SpanHistogram(num=3, sum_ns=9, bucket_counts=(1, 2))
    state = replace(API, stages={Stage.PARSE: other, Stage.RENDER: spans(MS)}, tokens={}, total=other)
    spool.put_frontend_state(replace(state, updated_unix_ns=clock()))
    turn()

    assert value("request_stage_seconds_count", MODEL, stage="render") == 1
    assert value("request_stage_seconds_count", MODEL, stage="parse") is None
    assert value("api_token_seconds_count", MODEL, part="send") is None
    assert value("request_seconds_count", MODEL) is None
    assert value("time_to_first_byte_seconds_count", MODEL) == 2


def test_a_state_that_the_results_cannot_hold_costs_no_other_one(spool, turn, value, clock):
    least = -(2**63)
    for num in (least, 2**63 - 1):
        spool.put_frontend_state(replace(API, num_failed=num, updated_unix_ns=clock()))
        spool.put_frontend_state(replace(API, api="1", updated_unix_ns=clock()))
        spool.put_engine_state(replace(LOOP, num_iterations=num, num_unjoined=num, updated_unix_ns=clock()))
        spool.put_engine_state(replace(LOOP, engine="1", updated_unix_ns=clock()))
        turn()

    assert value("request_seconds_count", MODEL) == 4
    assert value("engine_iterations_total", ENGINE | {"engine": "1"}) == 4


def test_who_waits_for_a_cpu_is_told_by_process_and_an_api_server_has_no_engine(spool, value, clock, make_state):
    spool.put_state(make_state(runqueue_wait_ratio=0.4))
    for engine, ratio in (("0", 0.2), ("1", None)):
        state = replace(LOOP, engine=engine, runqueue_wait_ratio=ratio, updated_unix_ns=clock())
        spool.put_engine_state(state)
    spool.put_frontend_state(replace(API, runqueue_wait_ratio=0.3, updated_unix_ns=clock()))
    spool.put_frontend_state(replace(API, server_id="vllm-b", runqueue_wait_ratio=0.1, updated_unix_ns=clock()))

    assert value("runqueue_wait_ratio", ENGINE, process="rank-0") == 0.4
    assert value("runqueue_wait_ratio", ENGINE, process="engine-0") == 0.2
    assert value("runqueue_wait_ratio", ENGINE | {"engine": "1"}, process="engine-1") is None
    assert value("runqueue_wait_ratio", MODEL, process="api-0") == 0.3


def test_of_two_servers_of_one_model_the_worse_is_told(spool, registry, value, clock):
    spool.put_engine_state(replace(LOOP, updated_unix_ns=clock()))
    worse = {EnginePart.LOOP: 2_000_000}
    spool.put_engine_state(replace(LOOP, server_id="vllm-b", exposed_ns=worse, updated_unix_ns=clock()))

    samples = [s for family in registry.collect() for s in family.samples if s.name.endswith("unexplained_ratio")]
    assert len(samples) == 1
    assert value("server_unexplained_ratio", ENGINE) == pytest.approx(0.25)


def test_the_server_s_hdbi_holds_what_the_device_waits_for_between_steps(put, spool, turn, value, clock):
    labels = ENGINE | {"phase": "decode"}
    put("a", 10_000)
    put("b", 30_000)
    turn()
    assert value("hdbi_server", labels) is None

    spool.put_engine_state(engine_state(exposed={EnginePart.SCHEDULE: 2}, updated_unix_ns=clock()))

    assert value("hdbi_server", labels) == pytest.approx(2.2 / (2.2 + 1.8 + 2))
    clock.sleep_s(31)
    assert value("hdbi_server", labels) is None


@pytest.fixture
def busy(put, spool, make_state, turn, clock):
    spool.put_engine_state(replace(LOOP, updated_unix_ns=clock()))
    spool.put_engine_state(engine_state(engine="7", runqueue_wait_ratio=0.1, updated_unix_ns=clock()))
    spool.put_engine_state(engine_state(model_name="tiny", updated_unix_ns=clock(), server_id="vllm-c"))
    spool.put_frontend_state(replace(API, updated_unix_ns=clock()))
    other = Server(server_id="vllm-b", engine="1", rank=3, model_name='odd "name"\\\n')
    spool.put_state(make_state(dropped={"backlog": 1}, overhead_ns=1, serving_ns=10, runqueue_wait_ratio=0.1))
    spool.put_state(make_state(server=other))
    for index, phase in enumerate(Phase):
        put(f"a{index}", phase=phase)
    put("b", server=other)
    turn()


def test_the_number_of_series_is_bounded_as_the_documents_say(
    spool, results, make_state, make_info, make_step, registry
):
    """One worker with every phase, graph mode, family of kernels, tier, component and bound there can be."""
    num_per_phase, num_per_worker = 100, 6 * 100 + 31
    (plain,) = make_state().steps
    plain_steps = [
        replace(plain, phase=phase, graph_mode=mode)
        for phase in Phase
        for mode in (GraphMode.NONE, GraphMode.FULL, GraphMode.PIECEWISE)
    ]
    times = {"steps": tuple(plain_steps), "iterations": tuple(plain_steps)}
    spool.put_state(make_state(**times, overhead_ns=1, serving_ns=10, dropped={"backlog": 1}, runqueue_wait_ratio=0.1))
    results.put_states(spool.states())
    unknown = StepBreakdown(device=DeviceTime(idle_ns=None, idle=IdleTime.unknown()), exposed=ExposedTax.unknown())
    for phase in Phase:
        step = replace(make_step(phase=phase), families={family: FamilyShare(kernels=1) for family in Family}, hdbi=0.2)
        breakdown = Breakdown(
            source=Source(),
            calibration=Calibration(dilation=1.5),
            coverage=Coverage(replay=dict.fromkeys(Tier, 0.25)),
            steps=(step,),
        )
        results.add_step(phase, make_info(phase, phase=phase), breakdown, now_ns=0)
        bar = Bar(window_ns=9, limit_ns=1, exposed_ns={"engine": 8})
        limit = StepLimit(flops=1, bytes=1, compute_ns=1, memory_ns=1, mfu=0.1, mbu=0.1, bar=bar)
        limited = [replace(step, limit=replace(limit, bound=bound)) for bound in Bound]
        large = replace(step, batch=replace(step.batch, requests=64), hdbi=0.9)
        for number, each in enumerate((unknown, large, *limited)):
            step_id = f"{phase}-{number}"
            info = make_info(step_id, phase=phase)
            results.add_step(step_id, info, replace(breakdown, steps=(each,)), now_ns=0)

    samples = [sample for family in registry.collect() for sample in family.samples]

    num_by_phase = Counter(s.labels["phase"] for s in samples if "phase" in s.labels)
    assert num_by_phase == dict.fromkeys(Phase, num_per_phase) | {Phase.IDLE: num_per_phase - 1}  # it has no batch
    assert sum("model_name" in s.labels for s in samples) < num_per_worker
    assert f"{num_per_phase} series" in METRICS_PAGE.read_text()
    assert f"{num_per_worker} series" in METRICS_PAGE.read_text()


def test_the_number_of_series_of_a_model_s_api_servers_is_bounded_as_the_documents_say(spool, turn, registry, clock):
    for api in ("0", "1"):
        spool.put_frontend_state(replace(API, api=api, runqueue_wait_ratio=None, updated_unix_ns=clock()))
        turn()

    num = sum("model_name" in s.labels for family in registry.collect() for s in family.samples)

    assert num == (len(Stage) + len(DELIVERY) + 3) * (len(SPAN_BUCKETS_NS) + 3) + 3
    assert f"{num} series" in METRICS_PAGE.read_text()


def test_every_metric_is_in_the_documents(busy, registry):
    names = {sample.name for family in registry.collect() for sample in family.samples}
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in names} | {"taxbreak_launch_floor_seconds"}

    assert set(re.findall(r"^\| `(taxbreak_\w+)", METRICS_PAGE.read_text(), flags=re.MULTILINE)) >= names


@pytest.mark.parametrize(("generate", "parse"), [(generate_latest, parse), (generate_openmetrics, parse_openmetrics)])
def test_the_text_parses_with_every_family_once_and_no_series_twice(busy, registry, generate, parse):
    text = generate(registry).decode()

    families = list(parse(text))
    names = [family.name for family in families]
    series = [(s.name, *sorted(s.labels.items())) for family in families for s in family.samples]
    assert len(set(names)) == len(names) > 15
    assert len(set(series)) == len(series)
    assert all(family.documentation and family.type != "unknown" for family in families)
    assert all(name.startswith("taxbreak_") for name in names)
    assert "_created" not in text
    assert {s[0] for s in series if s[0].endswith("build_info")} == {"taxbreak_build_info"}


def test_labels_are_the_agreed_ones(busy, registry):
    extra = {
        "steps": {"graph_mode"},
        "orchestration_seconds": {"component"},
        "exposed_orchestration_seconds": {"component"},
        "device_idle_seconds": {"cause"},
        "kernels": {"family"},
        "withheld_steps": {"figure"},
        "replay_coverage_ratio": {"tier"},
        "limit_bar_seconds": {"part"},
        "step_seconds": {"le"},
        "iteration_seconds": {"le"},
    }
    without_phase = {
        "samples_dropped": {*TINY, "reason"},
        "capture_overhead_ratio": {*TINY},
        "recording_enabled": {*TINY},
        "cupti_attached": {*TINY},
        "server": {*TINY, *BUILD},
    }
    of_engines = {
        "engine_iterations": {*ENGINE},
        "engine_iteration_seconds": {*ENGINE},
        "engine_left_out_iterations": {*ENGINE},
        "engine_unjoined_steps": {*ENGINE},
        "engine_busy_seconds": {*ENGINE, "part"},
        "engine_exposed_seconds": {*ENGINE, "part"},
        "idle_between_steps_seconds": {*ENGINE, "cause"},
        "server_unexplained_ratio": {*ENGINE},
        "hdbi_server": {*ENGINE, "phase"},
    }
    of_api_servers = {
        "request_stage_seconds": {*MODEL, "stage"},
        "request_seconds": {*MODEL},
        "time_to_first_byte_seconds": {*MODEL},
        "api_token_seconds": {*MODEL, "part"},
        "event_loop_lag_seconds": {*MODEL},
        "requests_not_followed": {*MODEL, "reason"},
    }
    of_the_sidecar = {"spool_bytes": set(), "analysis_lag_seconds": set(), "build": {"version"}}

    for family in registry.collect():
        name = family.name.removeprefix("taxbreak_")
        known = without_phase | of_engines | of_api_servers | of_the_sidecar
        wanted = known.get(name, {*DECODE} | extra.get(name, set()))
        for sample in family.samples:
            if name == "runqueue_wait_ratio":
                wanted = {*MODEL, "process"} | (set() if sample.labels["process"].startswith("api") else {"engine"})
            assert set(sample.labels) - {"le"} == wanted - {"le"}, name


@pytest.mark.parametrize(("attached", "told"), [(True, 1), (False, 0)])
def test_whether_cupti_is_attached_is_told_while_the_server_runs(spool, make_state, value, clock, attached, told):
    spool.put_state(make_state(cupti_attached=attached))

    assert value("cupti_attached", TINY) == told

    clock.sleep_s(60)
    assert value("cupti_attached", TINY) is None


@pytest.mark.parametrize(("enabled", "told"), [(True, 1), (False, 0)])
def test_whether_steps_are_recorded_is_told_while_the_server_runs(spool, make_state, value, clock, enabled, told):
    spool.put_state(make_state(enabled=enabled))

    assert value("recording_enabled", TINY) == told

    clock.sleep_s(60)
    assert value("recording_enabled", TINY) is None


@pytest.fixture
def make_build(make_state):
    """A worker's state that tells what it is built of."""

    def make(*, server_id="s", started_ns=1, device_type="cuda", **changes):
        told = BUILD | changes
        told["device_name"], told["device_uuid"] = told.pop("gpu"), told.pop("uuid")
        server = Server(server_id=server_id, model_name="tiny", device_type=device_type, **told)
        return make_state(server=server, started_ns=started_ns)

    return make


def test_what_a_server_is_built_of_is_told_while_it_runs(spool, make_build, value, clock):
    spool.put_state(make_build())

    assert value("server_info", TINY, **BUILD) == 1

    clock.sleep_s(60)
    assert value("server_info", TINY, **BUILD) is None


def test_a_server_that_was_restarted_with_other_settings_is_told_once(spool, make_build, value):
    spool.put_state(make_build(server_id="before"))
    spool.put_state(make_build(server_id="after", started_ns=2, settings_hash="97b4795840"))

    assert value("server_info", TINY, **BUILD) is None
    assert value("server_info", TINY, **BUILD | {"settings_hash": "97b4795840"}) == 1


def test_replicas_on_two_gpus_are_both_told(spool, make_build, value):
    spool.put_state(make_build(server_id="one"))
    spool.put_state(make_build(server_id="other", uuid="GPU-2d3c"))

    assert value("server_info", TINY, **BUILD) == value("server_info", TINY, **BUILD | {"uuid": "GPU-2d3c"}) == 1


def test_a_cpu_is_no_gpu(spool, make_build, value):
    spool.put_state(make_build(device_type="cpu", gpu="AMD EPYC", uuid=""))

    assert value("server_info", TINY, **BUILD | {"gpu": "", "uuid": ""}) == 1
