"""A capture's own knowledge: labels, phase and batch from its StepInfo, and the observer effect taken off."""

import gzip
import json
from pathlib import Path

import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.spool.spool import Spool


def op(name: str, start_us: int, dur_us: int) -> dict[str, object]:
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": 1, "ts": start_us, "dur": dur_us}


# 100 µs: two views of 2 µs that compute nothing, so dispatch costs 2 µs; mm from 20 computes 22…60, add from 70 72…90
EVENTS = [
    {**op("taxbreak.step:s1", 0, 100), "cat": "user_annotation"},
    op("aten::view", 5, 2),
    op("aten::view", 10, 2),
    op("aten::mm", 20, 40),
    op("aten::add", 70, 20),
]


@pytest.fixture
def capture(tmp_path: Path):
    def capture(**known: object) -> Path:
        info = StepInfo(
            step_id="s1",
            step_index=1,
            server=Server(server_id="server-a", model_name="tiny", device_type="cpu", rank=3),
            phase=Phase.DECODE,
            batch=Batch(requests=2, prompt_tokens=0, output_tokens=2),
            graph_mode=GraphMode.NONE,
            started_unix_ns=1,
            window_ns=100_000,
            **known,
        )
        text = gzip.compress(json.dumps({"traceEvents": EVENTS}).encode())
        spool = Spool(tmp_path / "spool", max_bytes=10**6, max_captures=10)
        spool.put(info, lambda path: path.write_bytes(text) and None)
        return spool.captures()[0].path

    return capture


def test_labels_phase_and_batch_are_those_of_the_step_info(capture):
    breakdown = analyze(capture())

    (step,) = breakdown.steps
    assert (breakdown.source.model_name, breakdown.source.rank) == ("tiny", 3)
    assert (step.name, step.phase, step.graph_mode, step.batch.requests) == ("s1", Phase.DECODE, "none", 2)
    assert step.kernels_per_output_token == 1.0


def test_without_plain_steps_nothing_is_corrected_and_it_says_so(capture):
    breakdown = analyze(capture(op_cost_ns=1000))

    assert breakdown.calibration.state == "uncalibrated"
    assert breakdown.calibration.dilation is None
    assert breakdown.total.taxes.delta_ft_ns == 100_000 - 38_000 - 18_000


def test_too_few_plain_steps_give_a_dilation_but_no_correction(capture):
    breakdown = analyze(capture(op_cost_ns=1000, plain_window_ns=80_000, num_plain=7))

    assert (breakdown.calibration.state, breakdown.calibration.dilation) == ("uncalibrated", 1.25)
    assert breakdown.total.taxes.delta_ft_ns == 44_000


def test_the_profilers_cost_is_taken_off_each_op_once(capture):
    breakdown = analyze(capture(op_cost_ns=1000, plain_window_ns=80_000, num_plain=8))

    total = breakdown.total
    by_op = {row.op: row.delta_ft_ns for row in total.top}
    assert total.taxes.delta_ft_ns == 44_000 - 4 * 1000
    assert by_op == {"aten::mm": 22_000 - 3000, "aten::add": 12_000 - 1000}
    assert total.hdbi == 56 / (56 + 40)
    assert total.host.python_ns + total.host.dispatch_ns == 44_000  # as recorded
    # 100 µs less four ops of 1 µs, against 80: 20 % are still unexplained
    assert breakdown.calibration.state == "calibrated"
    assert breakdown.calibration.residual == pytest.approx(0.2)


def _rewrite(path: Path, **head: object) -> None:
    (trace,) = path.glob("trace.json*")
    trace.write_bytes(gzip.compress(json.dumps({**head, "traceEvents": EVENTS}).encode()))


def _faults(path: Path) -> list[str]:
    return [note for note in analyze(path).notes if note.startswith("CUPTI")]


def test_a_recording_by_a_cupti_that_loses_records_says_so(capture):
    path = capture()
    _rewrite(path, cupti_version=130001)
    told = _faults(path)
    _rewrite(path, cupti_version=130200)

    assert ["13.0 (130001)" in note for note in told] == [True]
    assert _faults(path) == []
