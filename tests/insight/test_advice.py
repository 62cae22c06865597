"""Each rule fires where it must and is silent where it must; every setting exists in the installed vLLM."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from taxbreak_vllm import analyze as analyze_path
from taxbreak_vllm.insight import device_rules, rules
from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.evidence import distrust, with_plain_step
from taxbreak_vllm.insight.fusion import fusion
from taxbreak_vllm.machine.limits import Machine
from taxbreak_vllm.model.advice import Component, Per, Verdict
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
    Taxes,
    Tier,
    TopRow,
)
from taxbreak_vllm.model.limit import Bar, Bound, FamilyWork, StepLimit
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, StepHistogram

SERVING = Path(__file__).parents[1] / "data" / "serving.json"
B200 = "b200_vllm_eager_infer"
B300 = "b300_sglang_qwen3-30b-a3b_decode_cudagraph"
BERT = "h100_hf_bert-small_infer"
TIMESFORMER = "h100_hf_timesformer_infer"
AMD = "amd_vllm_prefilldecode_piecewise"
A100 = "a100_hta_negqueue_infer_graph"

# (rule, real trace, whether it fires), as if plain steps had been timed beside the recording
ON_TRACES = (
    ("cuda-graphs", B200, True),
    ("cuda-graphs", BERT, True),
    ("cuda-graphs", B300, False),  # the step is one graph
    ("cuda-graphs", TIMESFORMER, False),  # the device is busy all along
    ("full-graphs", AMD, False),  # in pieces, but nothing waits for them
    ("compilation", BERT, True),
    ("compilation", B200, False),  # torch.compile's kernels are in it
    ("library-front-end", B200, True),
    ("library-front-end", TIMESFORMER, False),
    ("async-scheduling", B200, False),
    ("prefill-budget", B200, True),
    ("prefill-budget", AMD, False),  # 8155 prompt tokens
    ("faster-core", B300, True),  # the host prepares for 11 % of the step before it launches the graph
    ("faster-core", B200, False),  # graphs come first
    ("quantization", AMD, True),
    ("quantization", B200, False),
    ("fused-kernels", B200, True),
    ("fused-kernels", TIMESFORMER, True),
    ("fused-kernels", B300, False),  # its chains are in one graph
)


def calibrated(path, plain=0.99):
    """A trace whose steps would have taken that share of their time without a profiler."""
    breakdown = analyze_path(path)
    return with_plain_step(
        breakdown, round(plain * sum(s.device.window_ns for s in breakdown.steps) / len(breakdown.steps))
    )


def fired(report):
    return {advice.rule for advice in report.advice}


@pytest.mark.parametrize(("rule", "name", "fires"), ON_TRACES)
def test_on_real_traces(real_trace, rule, name, fires):
    path = real_trace(name)

    report = advise([calibrated(path)], fusion=fusion(path))

    assert (rule in fired(report)) == fires


def capture(*, window=1000, waits=400, blocked=0, dilation=1.0, device_type="cuda", fusible=0, **fields):
    """A calibrated capture of one decode step: `waits` ns of its window the device waits for Python."""
    active = window - waits - blocked
    step = StepBreakdown(
        **{
            "name": "step",
            "phase": Phase.DECODE,
            "graph_mode": GraphMode.NONE,
            "batch": Batch(requests=4, prompt_tokens=0, output_tokens=4),
            "window_ns": window,
            "device": DeviceTime(
                window_ns=window,
                active_ns=active,
                idle_ns=waits + blocked,
                idle=IdleTime(host_ns=waits, blocked_ns=blocked),
            ),
            "taxes": Taxes(delta_ft_ns=waits, delta_kt_ns=0, orchestration_ns=waits),
            "exposed": ExposedTax(delta_ft_ns=waits),
            "tklqt_ns": 1,
            "launches": 100,
            "kernels": 100,
            "families": {"gemm": FamilyShare(active_ns=active - fusible), "norm": FamilyShare(active_ns=fusible)},
        }
        | fields
    )
    return Breakdown(
        source=Source(device_type=device_type),
        calibration=Calibration(dilation=dilation, residual=dilation - 1, state="calibrated"),
        coverage=Coverage(kernels=100, linked=100, events=200),
        steps=(step,),
        total=step,
    )


COMPILED = (
    TopRow(
        op="", kernel="triton_poi_fused", family="other", i_lib=False, count=1, delta_ft_ns=1, delta_ct_ns=None,
        delta_kt_ns=0, active_ns=1, tier=Tier.TRACE,
    ),
)  # fmt: skip
AOT = "AOTDispatcher Runtime Wrapper Prologue"  # of a compiled graph on a CPU, beside vLLM's own ops
BUSY = {"waits": 20}
GRAPH = {"graph_mode": GraphMode.FULL, "launches": 1}
PIECES = {"graph_mode": GraphMode.PIECEWISE, "launches": 30}
MANY = {"batch": Batch(requests=64, prompt_tokens=0, output_tokens=64)}


def part(flops, size, floor_ns):
    return FamilyWork(
        flops=flops, bytes=size, most_bytes=size, reach_bytes=size, dtype="bf16", floor_ns=(floor_ns, floor_ns)
    )


def limited(bound, *, compute_ns=30, memory_ns=600, shared=900, active_ns=980):
    """A step with a limit, of 1,000 bytes; `shared` of them are weights."""
    floor_ns = max(compute_ns, memory_ns)
    part_ns = memory_ns * shared // 1000
    return {
        "limit": StepLimit(
            flops=10,
            bytes=1000,
            most_bytes=1000,
            compute_ns=compute_ns,
            memory_ns=memory_ns,
            floor_ns=(floor_ns, floor_ns),
            bound=bound,
            mfu=compute_ns / 1000,
            mbu=memory_ns / 1000,
            bar=Bar(window_ns=1000, limit_ns=floor_ns, above_ns=active_ns - floor_ns, exposed_ns={"delta_ft": 20}),
            parts={
                "linear": part(10, shared, max(part_ns, compute_ns)),
                "kv": part(0, 1000 - shared, memory_ns - part_ns),
            },
        )
    }


MEMORY, COMPUTE = limited(Bound.MEMORY), limited(Bound.COMPUTE, compute_ns=700)
LATENCY, CACHE = limited(Bound.LATENCY, memory_ns=40), limited(Bound.MEMORY, shared=100)
NEAR = limited(Bound.MEMORY, memory_ns=980, shared=1000) | {
    "families": {"gemm": FamilyShare(active_ns=500), "norm": FamilyShare(active_ns=480)}
}
PREFILL = {"phase": Phase.PREFILL, "batch": Batch(requests=1, prompt_tokens=300, output_tokens=1)}
LONG_PREFILL = {"phase": Phase.PREFILL, "batch": Batch(requests=1, prompt_tokens=8000, output_tokens=1)}


@pytest.mark.parametrize(
    ("rule", "captures", "fires"),
    [
        ("cuda-graphs", [{}], True),
        ("cuda-graphs", [BUSY], False),
        ("cuda-graphs", [GRAPH], False),
        ("cuda-graphs", [{"launches": 5, "kernels": 5}], False),
        ("full-graphs", [PIECES], True),
        ("full-graphs", [PIECES | BUSY], False),
        ("full-graphs", [GRAPH], False),
        ("capture-sizes", [{}, GRAPH | BUSY], True),
        ("capture-sizes", [{}, {}], False),
        ("capture-sizes", [GRAPH, GRAPH], False),
        ("async-scheduling", [{"waits": 0, "blocked": 300}], True),
        ("async-scheduling", [{"waits": 0, "blocked": 30}], False),
        ("batch-size", [{}], True),
        ("batch-size", [MANY], False),
        ("prefill-budget", [PREFILL], True),
        ("prefill-budget", [LONG_PREFILL], False),
        ("faster-core", [GRAPH], True),
        ("faster-core", [GRAPH | BUSY], False),
        ("quantization", [BUSY], True),
        ("quantization", [BUSY | MEMORY], True),
        ("quantization", [BUSY | COMPUTE], True),
        ("quantization", [BUSY | LATENCY], False),  # smaller kernels take as long
        ("quantization", [BUSY | NEAR], False),  # what half the bytes take is most of what these kernels take
        ("larger-batch", [BUSY | MEMORY], True),
        ("larger-batch", [BUSY], False),  # nothing is known of its limit
        ("larger-batch", [MEMORY], False),  # the host is in the way
        ("larger-batch", [BUSY | COMPUTE], False),
        ("larger-batch", [BUSY | LATENCY], False),
        ("larger-batch", [BUSY | CACHE], False),  # each request brings its own bytes
        ("larger-batch", [BUSY | MEMORY | LONG_PREFILL], False),
        ("quantization", [{}], False),
        ("fused-kernels", [BUSY | {"fusible": 300}], True),
        ("fused-kernels", [BUSY | {"fusible": 30}], False),
        ("engine-loop", [{}, {}], False),  # separate captures tell nothing of the time between them
    ],
)
def test_on_hand_built_captures(rule, captures, fires):
    report = advise([capture(**fields) for fields in captures])

    assert (rule in fired(report)) == fires


def test_a_host_in_a_synchronize_while_the_device_idles_asks_for_async_scheduling(reference, analyze):
    r = reference
    events = [
        *(
            r.step("1", 0, 1000),
            r.op("aten::mm", 0, 20),
            r.call("cudaLaunchKernel", 5, 15, 1),
            r.kernel("k", 20, 100, 1),
        ),
        *(
            r.call("cudaStreamSynchronize", 30, 700),
            r.op("aten::mm", 710, 730),
            r.call("cudaLaunchKernel", 715, 725, 2),
        ),
        r.kernel("k", 730, 1000, 2),
    ]
    breakdown = with_plain_step(analyze(events, floor_ns=5), 1000)

    (advice,) = [one for one in advise([breakdown]).advice if one.rule == "async-scheduling"]

    assert advice.component is Component.SYNCHRONIZATION
    assert advice.at_most_ns == 600  # from the kernel's end at 100 to the call's return at 700


def test_time_between_the_steps_of_one_trace_asks_about_the_engine_loop(tmp_path):
    data = json.loads(SERVING.read_text())
    starts = sorted(e["ts"] for e in data["traceEvents"] if e.get("name", "").startswith("execute_context"))
    for event in data["traceEvents"]:
        event["ts"] = event.get("ts", 0) + 1000 * sum(event.get("ts", 0) >= start for start in starts[1:])
    apart = tmp_path / "apart.json"
    apart.write_text(json.dumps(data))

    reports = [advise([with_plain_step(b, b.steps[1].device.window_ns)]) for b in map(analyze_path, (SERVING, apart))]

    assert ["engine-loop" in fired(report) for report in reports] == [False, True]


@pytest.mark.parametrize(
    ("machine", "fires"),
    [
        (Machine(cpu_limit=2, omp_threads=8), True),
        (Machine(cpu_limit=2, throttled_ratio=0.4), True),
        (Machine(cpu_limit=8, omp_threads=8, throttled_ratio=0.01), False),
        (Machine(), False),
        (None, False),
    ],
)
def test_more_threads_than_processors_or_a_throttled_container_ask_for_cpus(machine, fires):
    report = advise([capture()], machine=machine)

    assert ("cpu-limit" in fired(report)) == fires


@pytest.mark.parametrize(
    ("fields", "rule", "said", "at_most_ns"),
    [
        (MEMORY, "quantization", "memory-bound, the hardware's limit being 0.00 ms of its 0.00 ms", 980 - 270),
        (COMPUTE, "quantization", "compute-bound", 980 - 350),
        ({}, "quantization", "a faster host would change nothing", 980),
        (MEMORY | {"fusible": 300}, "fused-kernels", "they read and write each value once", 300),
        (LATENCY | {"fusible": 300}, "fused-kernels", "latency-bound", 300),
        (LATENCY | {"fusible": 300}, "fused-kernels", "would help, fewer kernels do", 300),
        # 4 tokens of a step of 1000 ns, four times as many of which would read the same weights
        (MEMORY, "larger-batch", "falls from 0.1 to 0.0 µs", 750 // 4),
    ],
)
def test_what_bounds_the_device_s_work_is_said_and_bounds_what_a_change_wins(fields, rule, said, at_most_ns):
    (advice,) = [one for one in advise([capture(**BUSY | fields)]).advice if one.rule == rule]

    assert advice.component is Component.DEVICE_WORK
    assert said in advice.finding
    assert advice.at_most_ns == at_most_ns
    assert advice.predicted is None
    assert advice.unpredicted


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        (MEMORY, "Read fewer bytes: 8-bit weights"),
        (COMPUTE, "Multiply in 8 bits, weights and activations both"),
        ({}, "Make the work smaller: 8-bit weights and activations"),
        (MEMORY | {"families": {"attention": FamilyShare(active_ns=900)}}, "Read fewer bytes: an 8-bit cache"),
        (COMPUTE | {"families": {"attention": FamilyShare(active_ns=900)}}, "a smaller cache would win nothing"),
    ],
)
def test_what_is_made_smaller_is_what_the_work_is_bound_by(fields, change):
    (advice,) = [one for one in advise([capture(**BUSY | fields)]).advice if one.rule == "quantization"]

    assert change in advice.change


def test_a_batch_grows_until_products_take_as_long_and_no_more_than_fourfold():
    grown = limited(Bound.MEMORY, compute_ns=240)  # 540 ns of weights over 240 - 60 ns that grow: threefold

    (advice,) = [one for one in advise([capture(**BUSY | grown)]).advice if one.rule == "larger-batch"]

    assert "which 3.0 times as many would read once too" in advice.finding
    assert advice.at_most_ns == round(1000 * 2 / 3) // 4
    assert advice.per is Per.TOKEN


def test_every_rule_has_its_cases():
    told = Path(__file__).read_text()
    source = "".join(Path(each.__file__).read_text() for each in (rules, device_rules))
    named = re.findall(r'e\.find\(\s*"([a-z-]+)"', source)

    assert len(named) == len(rules.RULES)
    assert [rule for rule in named if f'"{rule}"' not in told] == []


def test_without_a_plain_step_advice_hangs_on_how_long_it_is_and_says_what_would_settle_that(real_trace):
    report = advise([analyze_path(real_trace(BERT))])

    assert (report.verdict, report.advice) == (Verdict.CONDITIONAL, ())
    assert {"cuda-graphs", "compilation"} <= {one.rule for one in report.conditional}
    assert "calibration" in report.reasons[0]
    assert "--plain-ms" in report.settled_by


def test_advice_that_hangs_on_the_plain_step_comes_true_above_it_and_not_below(trace_path):
    breakdown = analyze_path(trace_path)
    for one in advise([breakdown]).conditional:
        above, below = (
            advise([with_plain_step(breakdown, round(factor * (one.if_plain_above_ns or 1)))])
            for factor in (1.01, 0.99)
        )
        if one.if_plain_above_ns:
            assert one.rule in fired(above)
            assert one.rule not in fired(below)
        else:  # the device's own work: it is there whatever the host did
            assert one.component is Component.DEVICE_WORK
            assert one.rule in fired(advise([with_plain_step(breakdown, breakdown.steps[0].device.window_ns)]))


def test_every_trace_gets_an_answer_other_than_not_yet(trace_path):
    breakdown = analyze_path(trace_path)
    report = advise([breakdown])

    if distrust(breakdown).is_untimed:
        assert report.verdict in (Verdict.CONDITIONAL, Verdict.NO_ACTION)
    else:
        assert report.reasons[0].startswith("coverage: ")


def test_a_device_that_works_all_along_needs_no_plain_step_for_an_answer():
    busy = replace(capture(waits=20, families={}), calibration=Calibration())

    report = advise([busy])

    assert (report.verdict, report.settled_by) == (Verdict.NO_ACTION, None)
    assert report.reasons[0].startswith("decode: nothing to change, however long a plain step is")


@pytest.mark.parametrize(
    ("dilation", "residual", "words"),
    [
        (6.9, 5.8, "it took 6.90× as long, +580% unexplained"),
        (0.46, -0.54, "it took only 0.46× as long, -54%: those were other steps"),
    ],
)
def test_a_recording_that_is_not_its_plain_step_does_not_advise_and_says_why_in_one_line(dilation, residual, words):
    poor = Calibration(dilation=dilation, residual=residual, state="calibrated")

    report = advise([replace(capture(), calibration=poor)])

    assert (report.verdict, report.advice, report.conditional) == (Verdict.WITHHELD, (), ())
    assert report.reasons == (f"calibration is poor: the recorded step is not the plain one: {words}",)


def test_a_poor_calibration_is_a_note_of_the_breakdown(real_trace):
    breakdown = analyze_path(real_trace(BERT))
    window_ns = breakdown.steps[0].device.window_ns

    usable, poor = (with_plain_step(breakdown, round(share * window_ns)) for share in (0.6, 0.4))

    assert usable.notes == breakdown.notes
    assert poor.notes[-1] == "calibration is poor: the recorded step is not the plain one, so nothing is advised on it"


def test_a_phase_most_of_whose_recordings_are_poor_is_not_judged_by_the_rest():
    poor = replace(capture(), calibration=Calibration(dilation=4.0, residual=3.0, state="calibrated"))

    few, most = advise([poor, *6 * [capture()]]), advise([*4 * [poor], *3 * [capture()]])

    assert few.verdict is Verdict.ACT
    assert few.reasons == ("1 of 7 recordings left out: calibration is poor: the recorded step is not the plain one",)
    assert (most.verdict, most.advice) == (Verdict.WITHHELD, ())
    assert any("3 of 7 recordings left out: calibration of decode is poor: most of" in one for one in most.reasons)


def test_without_coverage_nothing_is_advised_and_the_reason_is_said(real_trace):
    report = advise([calibrated(real_trace(A100))])

    assert (report.verdict, report.advice) == (Verdict.WITHHELD, ())
    assert "12% of the kernels have no launch event" in report.reasons[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"coverage": Coverage(kernels=100, linked=90, unlinked=10, events=200)},
        {"coverage": Coverage(kernels=100, linked=100, events=200, dropped_events=20)},
        {"calibration": Calibration(dilation=2.2, residual=1.2, state="calibrated")},
        {"steps": (replace(capture().steps[0], notes=("a graph launch left no recorded node",)),)},
        {"steps": (replace(capture().steps[0], kernels=0),)},
    ],
)
def test_what_cannot_be_trusted_is_left_out_and_counted(changes):
    report = advise([capture(), replace(capture(), **changes)])

    assert report.verdict is Verdict.ACT
    assert report.reasons[-1].startswith("1 of 2 recordings left out: ")
    assert advise([replace(capture(), **changes)]).verdict is Verdict.WITHHELD


def test_nothing_recorded_is_no_evidence():
    assert advise([]).verdict is Verdict.WITHHELD


def test_no_action_is_an_answer():
    report = advise([capture(waits=50, families={})])

    assert (report.verdict, report.advice) == (Verdict.NO_ACTION, ())
    assert report.reasons[0].startswith("decode: nothing to change: the device waits for the host 5% of the time")


def test_where_no_rule_applies_it_is_said():
    report = advise([capture(waits=400, families={}, launches=5, kernels=5, top=COMPILED, **MANY)])

    assert report.verdict is Verdict.NO_ACTION
    assert report.reasons[0].startswith("decode: no rule applies: the device waits for the host 40% of the time")


def test_evidence_must_outweigh_all_that_the_profiler_may_have_added():
    idle = DeviceTime(window_ns=1000, active_ns=100, idle_ns=900, idle=IdleTime(host_ns=400, queue_ns=500))
    sure, doubtful = (advise([capture(dilation=dilation, device=idle)]) for dilation in (1.3, 1.6))

    assert "cuda-graphs" in fired(sure)
    assert (doubtful.verdict, doubtful.advice) == (Verdict.WITHHELD, ())
    assert doubtful.reasons[0].startswith(
        "decode: too little evidence: the device waits for the host up to 64% of the time"
    )


def test_what_the_devices_work_leaves_of_the_plain_step_bounds_what_it_waits():
    report = advise([capture(waits=400, dilation=1.6, families={})])  # 600 of the 625 ns of a plain step it works

    assert (report.verdict, report.advice) == (Verdict.NO_ACTION, ())
    assert "the device waits for the host up to 4% of the time" in report.reasons[0]


def test_a_real_step_at_the_edge_of_evidence_is_not_advised_on(real_trace):
    path = real_trace(B300)

    report = advise([calibrated(path, plain=0.95)], fusion=fusion(path))

    assert (report.verdict, report.advice) == (Verdict.WITHHELD, ())
    assert "up to 12% of the time, but 5% of it may be the profiler's" in report.reasons[0]


def test_on_the_cpu_backend_only_the_unexplained_is_in_doubt_and_compiled_code_is_known():
    compiled = replace(capture().steps[0], tklqt_ns=None, launches=None)
    cpu = replace(capture(device_type="cpu"), steps=(compiled,))

    explained = replace(cpu, calibration=Calibration(dilation=1.6, op_cost_ns=9, residual=0.0, state="calibrated"))
    unexplained = replace(cpu, calibration=Calibration(dilation=1.6, op_cost_ns=9, residual=0.6, state="calibrated"))

    by_aot = replace(compiled, top=(replace(COMPILED[0], op=AOT, kernel=AOT),))

    assert "compilation" in fired(advise([explained]))
    assert "compilation" not in fired(advise([replace(explained, steps=(by_aot,))]))
    assert "compilation" not in fired(advise([unexplained]))


def test_the_bound_is_the_exposed_time_of_an_average_step():
    (graphs,) = [a for a in advise([capture(waits=400), capture(waits=200)]).advice if a.rule == "cuda-graphs"]

    assert (graphs.at_most_ns, graphs.at_most_ratio) == (300, 0.3)


def test_phases_are_judged_apart_and_idle_steps_not_at_all():
    report = advise([capture(), capture(phase=Phase.PREFILL, waits=0), capture(phase=Phase.IDLE, waits=900)])

    assert {advice.phase for advice in report.advice if advice.rule == "cuda-graphs"} == {Phase.DECODE}
    assert Phase.IDLE not in {advice.phase for advice in report.advice}


def test_every_setting_named_exists_in_the_vllm_that_is_installed():
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        pytest.skip("vLLM is not installed")
    home = Path(spec.origin).parent
    flags = "".join((home / file).read_text() for file in ("engine/arg_utils.py", "entrypoints/launchers/cli_args.py"))
    compilation, envs = (home / "config/compilation.py").read_text(), (home / "envs.py").read_text()
    text = "".join(Path(each.__file__).read_text() for each in (rules, device_rules))
    outside = {"--cpus"}  # of Docker

    assert {flag for flag in re.findall(r"--[a-z][a-z0-9-]+", text) if f'"{flag}"' not in flags} == outside
    assert [name for name in re.findall(r"VLLM_\w+", text) if name != "VLLM_COMPILE" and f'"{name}"' not in envs] == []
    for config in re.findall(r"--compilation-config '(\{.*\})'", text):
        keys = re.findall(r'"(\w+)":', config)
        assert [key for key in keys if not re.search(rf"^    {key}\b.*[:=]", compilation, flags=re.MULTILINE)] == []
    assert "FULL_AND_PIECEWISE = " in compilation
    assert "VLLM_COMPILE = 3" in compilation
    assert '"fp8"' in (home / "model_executor/layers/quantization/__init__.py").read_text()
    assert '"cutlass"' in (home / "config/kernel.py").read_text()


def timed(**phases):
    """Histograms of plain steps: how many of each phase, and how long one took (ns)."""
    return [
        StepHistogram(
            phase=Phase(phase), graph_mode=GraphMode.NONE, num_steps=num, sum_ns=num * each_ns, bucket_counts=()
        )
        for phase, (num, each_ns) in phases.items()
    ]


def test_a_change_is_one_card_and_counts_as_much_of_it_as_is_served():
    captures = [*6 * [capture(waits=400)], *6 * [capture(waits=800, phase=Phase.MIXED)]]

    report = advise(captures, timed=timed(decode=(90, 1000), mixed=(10, 1000), prefill=(100, 1000)))
    (graphs,) = [one for one in report.advice if one.rule == "cuda-graphs"]

    assert [(one.phase, one.serving_ratio, one.at_most_ratio, one.num_steps) for one in graphs.phases] == [
        (Phase.DECODE, 0.45, 0.4, 6),
        (Phase.MIXED, 0.05, 0.8, 6),
    ]
    assert (graphs.phase, graphs.num_steps) == (None, 12)
    assert graphs.at_most_ratio == pytest.approx(0.45 * 0.4 + 0.05 * 0.8)
    assert graphs.at_most_ns == pytest.approx(220, abs=1)
    assert graphs.interval == pytest.approx((0.22, 0.22))


def test_a_phase_that_is_hardly_served_does_not_lead_and_is_left_out_where_it_cannot_win():
    captures = [*6 * [capture(waits=400)], *2 * [capture(waits=900, phase=Phase.MIXED, graph_mode=GraphMode.FULL)]]

    report = advise(captures, timed=timed(decode=(98, 1000), mixed=(2, 1000)))

    assert report.advice[0].phases[0].phase is Phase.DECODE
    assert "faster-core" not in fired(report)
    assert "faster-core is left out: it cannot win more than 1.8% of the serving time" in report.reasons


def test_recorded_steps_tell_what_is_served_only_where_nothing_else_does():
    captures = [capture(waits=400), capture(waits=400, phase=Phase.MIXED)]

    alone, beside = advise(captures), advise(captures, timed=timed(decode=(3, 1000), mixed=(1, 1000)))

    assert [served.serving_ratio for served in alone.serving.phases] == [0.5, 0.5]
    assert not alone.serving.is_timed
    assert [served.serving_ratio for served in beside.serving.phases] == [0.75, 0.25]


def test_a_phase_of_few_steps_widens_the_interval_of_a_change_by_all_of_it():
    captures = [*6 * [capture(waits=400)], *2 * [capture(waits=800, phase=Phase.MIXED)]]

    report = advise(captures, timed=timed(decode=(90, 1000), mixed=(10, 1000)))
    (graphs,) = [one for one in report.advice if one.rule == "cuda-graphs"]

    assert graphs.interval == pytest.approx((0.9 * 0.4, 0.9 * 0.4 + 0.1))


def test_cards_on_few_steps_come_after_those_with_an_interval():
    captures = [*6 * [capture(waits=200)], *5 * [capture(waits=900, phase=Phase.MIXED, graph_mode=GraphMode.FULL)]]

    rules_in_order = [one.rule for one in advise(captures).advice]
    (thin,) = [one for one in advise(captures).advice if one.rule == "faster-core"]

    assert rules_in_order.index("cuda-graphs") < rules_in_order.index("faster-core")
    assert (thin.num_steps, thin.interval) == (5, None)


def test_more_requests_in_a_step_are_bounded_in_tokens_not_in_time_of_a_step_that_does_not_shrink():
    two = {"batch": Batch(requests=2, prompt_tokens=0, output_tokens=2)}
    report = advise([capture(waits=600, **two)] * 6)
    (batch,) = [one for one in report.advice if one.rule == "batch-size"]

    assert batch.per is Per.TOKEN
    assert (batch.at_most_ns, batch.at_most_ratio) == (437, 0.875)  # of 500 ns a token, with 16 in place of 2
    assert report.serving.tokens_per_s == pytest.approx(2e6)
    assert batch.tokens_per_s_at_most == pytest.approx(16e6)
    assert report.serving.host_ns_per_token == 300
    assert "win 52% where the device's work grows with them" in batch.finding


def test_settings_of_one_name_are_joined_to_the_largest():
    batches = (
        Batch(requests=1, prompt_tokens=300, output_tokens=1),
        Batch(requests=2, prompt_tokens=40, output_tokens=4),
    )
    captures = [
        capture(phase=phase, batch=batch) for phase, batch in zip((Phase.PREFILL, Phase.MIXED), batches, strict=True)
    ]

    (graphs,) = [one for one in advise(captures).advice if one.rule == "cuda-graphs"]

    assert [one for one in graphs.settings if "capture-size" in one] == ["--max-cudagraph-capture-size 301 or more"]
