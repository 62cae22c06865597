"""What a replay on a GPU shows, read off made-up traces: the launches of each run and what each took."""

from itertools import count

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="replay needs torch")

from taxbreak_vllm.replay import measure  # noqa: E402 - after the check for torch
from taxbreak_vllm.replay.inputs import prepare  # noqa: E402
from taxbreak_vllm.replay.task import Task  # noqa: E402
from taxbreak_vllm.trace.calls import Call, Input, Kernel  # noqa: E402


@pytest.fixture
def seen(reference, tmp_path):
    def seen(runs):
        """`runs` are lists of events; each lies in the window of a full-size replay."""
        window = reference.step("", 0, 10_000)
        window["name"] = measure.WINDOW + "full"
        path = tmp_path / "trace.json"
        path.write_text(reference.to_json([window, *(event for run in runs for event in run)]))
        return measure._seen(path)

    return seen


def run(reference, at, ids, *, query=0, front=30):
    """An op that computes for `front` ns, asks the runtime for `query` ns, and launches; its kernel starts 40 ns on."""
    launch = at + front + query
    correlation = next(ids)
    return [
        reference.op("aten::mm", at, launch + 30),
        reference.call("cudaStreamIsCapturing", at + front, at + front + query),
        reference.call("cudaLaunchKernel", launch, launch + 20, correlation),
        reference.kernel("gemm", launch + 40, launch + 140, correlation),
    ]


def test_a_replayed_dispatch_leaves_out_what_other_runtime_calls_took(reference, seen):
    ids = count(1)

    launches, runs = seen([run(reference, 100, ids), run(reference, 1100, ids, query=500)])

    assert runs == 2
    assert [(launch.run, launch.dispatch_ns, launch.launch_ns, launch.active_ns) for launch in launches] == [
        (0, 30, 40, 100),
        (1, 30, 40, 100),
    ]


def test_a_second_launch_of_an_op_counts_from_where_the_first_returned(reference, seen):
    events = [
        reference.op("aten::topk", 100, 400),
        reference.call("cudaLaunchKernel", 150, 170, 1),
        reference.call("cudaLaunchKernel", 200, 220, 2),
        reference.kernel("first", 300, 310, 1),
        reference.kernel("second", 310, 320, 2),
    ]

    launches, _ = seen([events])

    assert [(launch.kernel.name, launch.dispatch_ns) for launch in launches] == [("first", 50), ("second", 30)]


def test_a_list_of_tensors_reaches_a_child_whole():
    call = Call("aten::cat", (Input("TensorList", ((2, 3), (4, 3)), ((3, 1), (3, 1))), Input("Scalar", value="0")))
    task = msgspec.json.decode(msgspec.json.encode(Task(call=call, kernels=(Kernel(),))), type=Task)

    prepared = prepare(task.call, device="cpu", max_bytes=2**20)

    assert prepared().shape == (6, 3)


def test_a_device_without_a_number_is_the_first(monkeypatch):
    """torch refuses "cuda" where it wants one device, as when a process takes its share of memory."""
    from taxbreak_vllm.replay import child

    taken = []
    properties = type("Properties", (), {"total_memory": 100})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, index: taken.append((share, index))
    )

    child._take_device("cuda", 50)
    child._take_device("cuda:1", 1000)

    assert taken == [0, (0.5, 0), 1, (1.0, 1)]
