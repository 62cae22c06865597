"""The published attribution, worked by hand: each kernel from its op's start, what two share counts twice."""

import json
from pathlib import Path

from taxbreak_vllm import analyze
from taxbreak_vllm.model.breakdown import Attribution, Breakdown


def op(name: str, start_us: int, dur_us: int, external: int) -> dict[str, object]:
    return event("cpu_op", name, start_us, dur_us, {"External id": external})


def event(cat: str, name: str, start_us: int, dur_us: int, args: dict[str, object]) -> dict[str, object]:
    device = cat == "kernel"
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "pid": 0 if device else 1,
        "tid": 7 if device else 1,
        "ts": start_us,
        "dur": dur_us,
        "args": args,
    }


def launch(correlation: int, start_us: int) -> dict[str, object]:
    return event("cuda_runtime", "cudaLaunchKernel", start_us, 2, {"correlation": correlation})


def kernel(name: str, correlation: int, external: int, start_us: int, dur_us: int) -> dict[str, object]:
    args = {"correlation": correlation, "External id": external, "device": 0, "stream": 7}
    return event("kernel", name, start_us, dur_us, args)


# torch_op 0…100 > aten::linear 10…60 > aten::addmm 20…50: two launches at 30 and 40; then aten::relu 110…130 alone.
EVENTS = [
    op("torch_op", 0, 100, 1),
    op("aten::linear", 10, 50, 2),
    op("aten::addmm", 20, 30, 3),
    launch(1, 30),
    launch(2, 40),
    op("aten::relu", 110, 20, 4),
    launch(3, 115),
    kernel("nvjet_gemm", 1, 3, 36, 10),
    kernel("nvjet_gemm", 2, 3, 46, 10),
    kernel("vectorized_elementwise_kernel", 3, 4, 121, 10),
]


def breakdown(tmp_path: Path, attribution: Attribution) -> Breakdown:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": EVENTS}))
    return analyze(path, floor_ns=5000, attribution=attribution)


def test_each_kernel_counts_from_its_ops_start_and_its_enclosing_other_op(tmp_path):
    total = breakdown(tmp_path, Attribution.PAPER).total

    # T_dispatch: 30-20, 40-20, 115-110; T_py: addmm starts 20 after torch_op, twice; relu has no op around it
    assert total.taxes.delta_ft_ns == (10 + 20 + 5 + 20 + 20 + 0) * 1000
    assert total.taxes.delta_ct_ns == 0  # nvjet is framework-native there
    assert total.taxes.delta_kt_ns == 3 * 5000


def test_ours_counts_no_instant_twice_and_takes_nvjet_for_a_library(tmp_path):
    total = breakdown(tmp_path, Attribution.EXCLUSIVE).total

    # T_dispatch: root torch_op 0 to 30, then 32 to 40 after the first launch returned, relu 110 to 115
    # T_base is relu's 5; both GEMMs are cuBLASLt's: ΔCT = 25 + 3; T_py: 100 to 110 before relu
    assert total.taxes.delta_ct_ns == (25 + 3) * 1000
    assert total.taxes.delta_ft_ns == (30 + 8 + 5 + 10 - 28) * 1000


def test_device_time_is_the_sum_there_and_the_union_here(tmp_path):
    EVENTS_OVERLAP = [*EVENTS, kernel("vectorized_elementwise_kernel", 99, -1, 36, 10)]
    path = tmp_path / "overlap.json"
    path.write_text(json.dumps({"traceEvents": EVENTS_OVERLAP}))

    paper = analyze(path, floor_ns=5000, attribution=Attribution.PAPER).total
    ours = analyze(path, floor_ns=5000).total

    assert paper.hdbi == 40 / (40 + 75 + 15)
    assert ours.device.active_ns == 30_000
