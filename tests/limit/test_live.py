"""The limit of a capture, from what its worker wrote beside it; where that is not enough, one reason."""

from dataclasses import replace

import pytest

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.limit.live import with_limit
from taxbreak_vllm.limit.phases import by_phase
from taxbreak_vllm.model.baseline import Environment
from taxbreak_vllm.model.breakdown import Breakdown, DeviceTime, Source, StepBreakdown
from taxbreak_vllm.model.ceilings import CeilingSource, DeviceProperties, MeasuredCeilings, Rate
from taxbreak_vllm.model.shape import MatrixShape, ModelShape, StepWork
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.output.text.limit import bar_text
from taxbreak_vllm.service.results.counts import step_counts
from taxbreak_vllm.spool.spool import Spool

SERVER = Server(server_id="server", rank=3, device_name="NVIDIA H100 80GB HBM3", device_type="cuda")
MODEL = ModelShape(
    dtype="bf16",
    product_dtype="bf16",
    linear=MatrixShape(weights=10**9, bytes=2 * 10**9),
    lm_head=MatrixShape(weights=0, bytes=0),
)
INFO = StepInfo(
    step_id="step",
    step_index=1,
    server=SERVER,
    phase=Phase.DECODE,
    batch=Batch(),
    graph_mode=GraphMode.FULL,
    started_unix_ns=1,
    window_ns=1_000_000,
    work=StepWork(queries=1, keys=1, pairs=1, logits_rows=1, padded_tokens=1),
)
STATE = WorkerState(server=SERVER, started_unix_ns=1, updated_unix_ns=1, enabled=True, model=MODEL)
STEP = StepBreakdown(name="step", window_ns=1_000_000, device=DeviceTime(window_ns=1_000_000, active_ns=1_000_000))
BREAKDOWN = Breakdown(source=Source(device_name=SERVER.device_name), steps=(STEP,), total=replace(STEP, name=None))


def test_a_capture_is_told_by_its_model_and_its_makers_ceilings():
    breakdown = with_limit(BREAKDOWN, INFO, STATE)
    (step,) = breakdown.steps
    assert step.limit == breakdown.total.limit
    assert step.limit.flops == 2 * 10**9
    assert step.limit.floor_ns == (597015, 597015)  # 2 GB at 3350 GB/s
    assert step.limit.ceilings.sources == {"bf16": CeilingSource.TABLE, "bytes": CeilingSource.TABLE}
    assert step.limit_reason is None
    assert Breakdown.from_json(breakdown.to_json()) == breakdown


def test_properties_go_before_the_table_and_what_was_measured_before_both(tmp_path):
    device = DeviceProperties(device_name=SERVER.device_name, memory_clock_hz=2_600_000_000, memory_bus_bits=5120)
    reached = MeasuredCeilings(flops_per_s={"bf16": Rate(per_s=700e12, by="torch.mm")})
    with Baselines(tmp_path / "store.sqlite3") as store:
        store.raise_ceilings(Environment(device_type="cuda", device_name=SERVER.device_name, torch="2.9"), reached)
        view = store.view({"device_name": SERVER.device_name})

    (step,) = with_limit(BREAKDOWN, INFO, replace(STATE, device=device), view=view).steps

    assert step.limit.ceilings.sources == {"bf16": CeilingSource.MEASURED, "bytes": CeilingSource.DEVICE}
    assert step.limit.ceilings.flops_per_s == {"bf16": 700e12}
    assert step.limit.ceilings.bytes_per_s == 2.6e9 * 2 * 5120 / 8


@pytest.mark.parametrize(
    ("info", "state", "reason"),
    [
        (INFO, None, "is not beside the capture"),
        (INFO, replace(STATE, server=replace(SERVER, rank=4)), "is not beside the capture"),
        (INFO, replace(STATE, model=None, model_reason="could not be walked"), "could not be walked"),
        (INFO, replace(STATE, model=None), "says nothing of its model"),
        (replace(INFO, work=None), STATE, "could not tell what the step worked on"),
    ],
)
def test_what_is_missing_is_one_reason_and_no_limit(info, state, reason):
    (step,) = with_limit(BREAKDOWN, info, state).steps
    assert step.limit is None
    assert reason in step.limit_reason


def test_the_state_is_read_from_beside_a_capture(tmp_path):
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put(INFO, lambda path: path.write_bytes(b""))
    (capture,) = spool.captures()
    assert capture.read_state() is None
    spool.put_state(STATE)
    assert capture.read_state() == STATE


def test_the_bar_is_a_row_for_each_of_its_parts():
    head, _, table = bar_text(with_limit(BREAKDOWN, INFO, STATE))
    assert head.startswith("hardware limit (ceilings: NVIDIA H100 datasheet")
    assert dict(table.rows) == {
        "hard limit": "597.0 µs  59.7%",
        "kernels above the limit": "403.0 µs  40.3%",
        **dict.fromkeys(
            [f"waits: {layer}" for layer in ("framework (ΔFT)", "library (ΔCT)", "launch path (ΔKT)")], "0.0 µs   0.0%"
        ),
        **dict.fromkeys(["waits: other runtime calls", "other idle", "unknown"], "0.0 µs   0.0%"),
        "MFU": "0.2%",
        "MBU": "59.7%",
        "bound by": "memory",
        "achieved in products": "2.0 TFLOP/s",
        "achieved of memory": "2,000 GB/s",
    }
    (reason,) = bar_text(with_limit(BREAKDOWN, INFO, None))
    assert reason.startswith("hardware limit: not told")


def test_counters_take_the_least_time_by_its_bound_and_the_work():
    (step,) = with_limit(BREAKDOWN, INFO, STATE).steps
    counts = {(count.counter, count.label): count.value for count in step_counts(step)}
    assert counts["limit_ns", "memory"] == 597015
    assert counts["model_kiloflops", ""] == 2 * 10**6
    assert counts["model_bytes", ""] == 2 * 10**9


def test_a_phase_names_the_source_of_each_ceiling():
    (limit,) = by_phase(with_limit(BREAKDOWN, INFO, STATE).steps).values()

    assert limit.sources == {"bf16": "table", "bytes": "table"}
    assert "H100" in limit.ceilings[0]
