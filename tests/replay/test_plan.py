"""What a trace gives to replay: distinct calls, the commonest first, the outermost that may be."""

import gzip
import json

import pytest

from taxbreak_vllm.model.errors import BaselineError, TraceFormatError
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.replay.plan import plan
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.trace.calls import Call, Input, Kernel

GEMM = "ampere_sgemm_128x64_tn"
MATRIX = {"Input Dims": [[4, 8], [8, 6]], "Input type": ["float", "float"]}
CALL = (Input("float", (4, 8)), Input("float", (8, 6)))


@pytest.fixture
def written(reference, tmp_path):
    """Write made-up events as a trace, with the same shapes for all ops but those named."""

    def written(events, *, without=(), name="trace.json", **around):
        tree = json.loads(reference.to_json(events, **around))
        for event in tree["traceEvents"]:
            if event["cat"] == "cpu_op" and event["name"] not in without:
                event["args"] |= MATRIX
        path = tmp_path / name
        path.write_text(json.dumps(tree))
        return path

    return written


@pytest.fixture
def launch(reference):
    r = reference

    def launch(at, number, *ops, kernel=GEMM):
        nested = [r.op(op, at + n, at + 90 - n) for n, op in enumerate(ops)]
        return [
            *nested,
            r.call("cudaLaunchKernel", at + 30, at + 40, number),
            r.kernel(kernel, at + 50, at + 80, number),
        ]

    return launch


def test_the_commonest_call_comes_first_and_each_comes_once(written, launch):
    path = written(
        [*launch(0, 1, "aten::bmm"), *launch(100, 2, "aten::mm"), *launch(200, 3, "aten::mm")],
    )

    found = plan([path, path])

    assert [task.call for task in found.tasks] == [Call("aten::mm", CALL), Call("aten::bmm", CALL)]
    assert found.denied == ()


def test_the_root_op_is_replayed_for_all_kernels_under_it(written, reference, launch):
    r = reference
    path = written(
        [
            *launch(0, 1, "aten::linear", "aten::addmm"),
            r.call("cudaLaunchKernel", 60, 65, 2),
            r.kernel("split", 90, 95, 2),
        ]
    )

    (task,) = plan([path]).tasks

    assert task.call.op == "aten::linear"
    assert {kernel.name for kernel in task.kernels} == {GEMM, "split"}


def test_where_the_root_op_may_not_be_replayed_its_leaf_is(written, launch):
    path = written([*launch(0, 1, "vllm::moe_forward", "aten::mm"), *launch(100, 2, "vllm::moe_forward")])

    found = plan([path])

    assert [task.call.op for task in found.tasks] == ["aten::mm"]
    ((denied, reason),) = found.denied
    assert denied.call.op == "vllm::moe_forward"
    assert "forward context" in reason


def test_an_op_without_shapes_is_denied_for_that(written, launch):
    found = plan([written(launch(0, 1, "aten::mm"), without=("aten::mm",))])

    assert found.tasks == ()
    assert found.denied[0][1] == "recorded without shapes"


def test_of_the_cpu_backend_the_ops_that_compute_are_replayed(written, reference):
    op = reference.op
    path = written(
        [op("aten::linear", 0, 100), op("aten::t", 5, 10), op("aten::mm", 20, 99), op("aten::multinomial", 200, 300)]
    )

    found = plan([path])

    assert [task.call for task in found.tasks] == [Call("aten::mm", CALL)]
    assert found.tasks[0].kernels == (Kernel(),)
    assert [task.call.op for task, _ in found.denied] == ["aten::multinomial"]
    assert found.place == {"device_type": "cpu", "device_name": "", "torch": "", "driver": ""}


def test_traces_of_two_places_are_not_replayed_together(written, launch):
    one, other = (
        written(launch(0, 1, "aten::mm"), name=f"{n}.json", deviceProperties=[{"name": f"GPU {n}"}]) for n in range(2)
    )

    with pytest.raises(BaselineError, match=r"made in 2 places, not one: cuda GPU 0; cuda GPU 1"):
        plan([one, other])


def test_a_file_that_is_no_trace_is_named(tmp_path):
    with pytest.raises(TraceFormatError, match="missing"):
        plan([tmp_path / "missing.json"])


@pytest.mark.parametrize(("dtype", "word"), [("bfloat16", "c10::BFloat16"), ("float32", "float"), ("odd", "")])
def test_a_capture_tells_the_models_dtype_and_its_place(written, reference, tmp_path, dtype, word):
    text = written([reference.op("aten::mm", 0, 100)]).read_bytes()
    server = Server(server_id="s", dtype=dtype, device_type="cpu", device_name="a CPU", torch="2.9")
    info = StepInfo(
        step_id="s1",
        step_index=1,
        server=server,
        phase=Phase.DECODE,
        batch=Batch(),
        graph_mode=GraphMode.NONE,
        started_unix_ns=1,
        window_ns=100,
    )
    spool = Spool(tmp_path / "spool", max_bytes=10**6, max_captures=10)
    spool.put(info, lambda path: path.write_bytes(gzip.compress(text)) and None)

    found = plan([spool.captures()[0].path])

    assert found.dtype == word
    assert (found.place["device_name"], found.place["torch"]) == ("a CPU", "2.9")
