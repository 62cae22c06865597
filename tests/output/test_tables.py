"""One row per dispatch with all its spans, checked against numbers `tests/data/make_serving.py` makes by hand."""

import json
from pathlib import Path

import pandas as pd
import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.model.breakdown import Breakdown, Source, StepBreakdown
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.output.tables import dispatches, step_table
from taxbreak_vllm.spool.spool import Spool

SERVING = Path(__file__).parents[1] / "data" / "serving.json"
COLUMNS = """
step phase thread op root_op launch kernel family i_lib device stream t_root t_launch t_return t_dev t_end
t_py_ns t_dispatch_ns t_launch_ns delta_ft_ns delta_ct_ns delta_kt_ns num_kernels num_activities is_graph tier
"""
US = 1000


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return dispatches(SERVING)


def write_trace(path: Path, *events: dict) -> Path:
    path.write_text(json.dumps({"traceEvents": [{"ph": "X", "pid": 1, "tid": 1, **event} for event in events]}))
    return path


def event(category: str, name: str, at: int, duration: int, **args) -> dict:
    return {"cat": category, "name": name, "ts": at, "dur": duration, "args": args}


def test_every_dispatch_has_its_row_in_launch_order(table):
    # 14 of the prefill, 3 of each of 3 decodes
    assert len(table) == 14 + 3 * 3
    assert list(table.columns) == COLUMNS.split()
    assert table.t_launch.is_monotonic_increasing


def test_an_eager_dispatch_by_hand(table):
    # The second op begins at 1040 µs, 10 after the first; its launch call at 1050; the kernel 4 later, for 40.
    row = table.iloc[1]

    assert (row.phase, row.thread, row.op, row.root_op) == ("prefill", "100:100", "aten::mm", "aten::mm")
    assert (row.launch, row.family, row.device, row.stream) == ("cudaLaunchKernel", "gemm", 0, 7)
    times = (row.t_root, row.t_launch, row.t_return, row.t_dev, row.t_end)
    assert times == (1040 * US, 1050 * US, 1055 * US, 1054 * US, 1094 * US)
    assert (row.t_py_ns, row.t_dispatch_ns, row.t_launch_ns) == (10 * US, 10 * US, 4 * US)
    assert (row.num_kernels, row.num_activities, row.is_graph, row.i_lib) == (1, 1, False, True)


def test_a_graph_launch_is_one_row_with_all_its_kernels_and_no_op(table):
    row = table[table.is_graph].iloc[0]

    assert (row.launch, row.num_kernels, row.num_activities) == ("cudaGraphLaunch", 12, 12)
    assert row[["op", "root_op", "t_root"]].isna().all()
    assert row.kernel == "void vllm::rms_norm_kernel<c10::BFloat16>"
    assert row.t_end - row.t_dev == 240 * US  # 3 layers of 4 + 40 + 30 + 6 µs, back to back
    assert (row.t_dispatch_ns, row.i_lib) == (0, False)


def test_a_copy_names_itself_and_pays_no_launch_tax(table):
    row = table[table.num_kernels == 0].iloc[0]

    assert (row.kernel, row.family, row.delta_kt_ns) == ("Memcpy DtoH (Device -> Pinned)", "copy", 0)


def test_the_taxes_of_the_rows_sum_to_those_of_the_breakdown(table):
    breakdown = analyze(SERVING)
    taxes = breakdown.total.taxes

    assert (table.t_py_ns + table.t_dispatch_ns == table.delta_ft_ns + table.delta_ct_ns).all()
    assert table[["delta_ft_ns", "delta_ct_ns", "delta_kt_ns"]].sum().tolist() == [
        taxes.delta_ft_ns,
        taxes.delta_ct_ns,
        taxes.delta_kt_ns,
    ]
    by_step = table[table.phase == "decode"].delta_ft_ns.sum()
    assert by_step == sum(step.taxes.delta_ft_ns for step in breakdown.steps if step.phase == "decode")


def test_the_root_op_is_the_outermost_and_the_op_the_innermost(tmp_path):
    path = write_trace(
        tmp_path / "t.json",
        event("cpu_op", "aten::linear", 10, 50),
        event("cpu_op", "aten::addmm", 20, 30),
        event("cuda_runtime", "cudaLaunchKernel", 30, 5, correlation=1),
        event("kernel", "k", 25, 3, correlation=1, stream=7, device=0),
    )

    row = dispatches(path).iloc[0]

    assert (row.op, row.root_op, row.t_root) == ("aten::addmm", "aten::linear", 10 * US)
    assert row.t_launch_ns == -5 * US  # the trace says so, and it is not clamped away
    assert row.step == "trace"  # one without annotations is one step, here as in the breakdown
    assert pd.isna(row.phase)


def test_what_could_not_be_measured_is_na_and_keeps_its_type(tmp_path):
    path = write_trace(
        tmp_path / "t.json",
        event("cuda_runtime", "cudaMemcpyAsync", 30, 5, correlation=1),
        event("gpu_memcpy", "Memcpy HtoD", 40, 3, correlation=1, stream=7, device=0),
    )

    table = dispatches(path)

    assert table[["delta_ct_ns", "delta_kt_ns"]].isna().all(axis=None)
    assert {str(table[name].dtype) for name in ("delta_ct_ns", "delta_kt_ns", "t_root")} == {"Int64"}


def test_on_the_cpu_backend_there_is_no_launch(tmp_path):
    table = dispatches(write_trace(tmp_path / "t.json", event("cpu_op", "aten::mm", 10, 50)))

    assert len(table) == 1
    assert table.op.tolist() == ["aten::mm"]
    assert table[["launch", "t_launch_ns"]].isna().all(axis=None)


def test_a_capture_gives_its_phase(tmp_path):
    info = StepInfo(
        step_id="s1",
        step_index=1,
        server=Server(server_id="server"),
        phase=Phase.VERIFY,
        batch=Batch(requests=1),
        graph_mode=GraphMode.NONE,
        started_unix_ns=0,
        window_ns=1,
    )
    trace = write_trace(
        tmp_path / "t.json",
        event("user_annotation", "taxbreak.step:s1", 0, 100),
        event("cuda_runtime", "cudaLaunchKernel", 30, 5, correlation=1),
        event("kernel", "k", 40, 3, correlation=1, stream=7, device=0),
    )
    spool = Spool(tmp_path / "spool", max_bytes=10**6, max_captures=10)
    spool.put(info, lambda path: path.write_bytes(trace.read_bytes()))
    (capture,) = (tmp_path / "spool").rglob("s1")

    assert dispatches(capture)[["step", "phase"]].to_numpy().tolist() == [["s1", "verify"]]


def test_the_table_of_steps_has_every_figure_under_its_name_in_the_json():
    breakdown = analyze(SERVING)

    table = step_table(breakdown)

    assert table.phase.tolist() == ["prefill", "decode", "decode", "decode"]
    assert table["device.idle.host_ns"].tolist() == [step.device.idle.host_ns for step in breakdown.steps]
    assert table.step[0] == breakdown.steps[0].name


def test_an_unknown_figure_keeps_its_type():
    table = step_table(Breakdown(source=Source(), steps=(StepBreakdown(name="s", notes=("one", "two")),)))

    assert table[["hdbi", "tklqt_ns", "taxes.delta_ft_ns", "graph_mode"]].isna().all(axis=None)
    assert [str(table[name].dtype) for name in ("hdbi", "tklqt_ns", "graph_mode")] == ["Float64", "Int64", "string"]
    assert table.notes.tolist() == ["one; two"]
