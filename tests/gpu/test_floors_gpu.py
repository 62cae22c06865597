"""Floors and replays that only a GPU has; where there are no plugins of pytest: `pytest -c /dev/null tests/gpu`."""

import pytest

torch = pytest.importorskip("torch", reason="replay needs torch")

from taxbreak_vllm.limit.ceilings import stated  # noqa: E402 - after the check for torch
from taxbreak_vllm.model.baseline import FloorKind, Match, Outcome  # noqa: E402
from taxbreak_vllm.replay.ceilings import WORKING_SETS, measure_ceilings  # noqa: E402
from taxbreak_vllm.replay.floors import GRAPH_NODES, here, measure_floors, shortest_kernel_ns  # noqa: E402
from taxbreak_vllm.replay.measure import measure  # noqa: E402
from taxbreak_vllm.replay.plan import plan  # noqa: E402
from taxbreak_vllm.replay.task import Options  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees"),
]


@pytest.fixture(scope="module")
def floors():
    return measure_floors("cuda")


def test_every_floor_is_measured(floors):
    assert floors.notes == ()
    assert {floor.kind for floor in floors.floors} == set(FloorKind)
    assert floors.kernel_source
    assert floors.clock == "cupti"


def test_an_empty_kernel_takes_microseconds_to_start(floors):
    assert 500 < floors.median_ns(FloorKind.KERNEL, 1) < 50_000


def test_a_graph_costs_a_launch_and_so_much_a_node(floors):
    points = dict(floors.graph_points())
    per_launch_ns, per_node_ns = floors.graph_line()

    assert set(points) == set(GRAPH_NODES)
    assert points[1] < points[64] < points[512]
    assert 0 < per_node_ns < 10_000
    assert 0 < per_launch_ns < 100_000


def test_an_empty_kernel_runs_for_a_microsecond():
    assert 100 < shortest_kernel_ns() < 10_000


def test_the_device_reaches_half_of_what_its_maker_states():
    found = measure_ceilings("cuda", 10)
    stated_here = stated(torch.cuda.get_device_name())
    if stated_here is None:
        pytest.skip(f"{torch.cuda.get_device_name()} is not in the table of devices")

    assert found.bytes_per_s.keys() == set(WORKING_SETS)
    assert 0.5 < found.bytes_per_s[WORKING_SETS[-1]].per_s / stated_here.bytes_per_s < 1.05
    for dtype, rate in found.flops_per_s.items():
        if dtype in ("bf16", "fp16", "fp8") and dtype in stated_here.flops_per_s:
            assert 0.4 < rate.per_s / stated_here.flops_per_s[dtype] < 1.05, (dtype, rate)
    assert "fp4" in found.missing


def test_the_environment_names_device_and_driver():
    environment = here("cuda")

    assert environment.device_name == torch.cuda.get_device_name()
    assert environment.driver or environment.device_type == "rocm"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The calls of a matrix product, a softmax, a copy to the device and a fill."""
    path = tmp_path_factory.mktemp("gpu") / "trace.json"
    x = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)

    def step():
        return torch.mm(x, x), x.softmax(-1), x.clone(), torch.zeros(4096, device="cuda")

    step()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.inference_mode(), torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        step()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(path))
    return {task.call.op: task for task in plan([path]).tasks}


@pytest.mark.parametrize("op", ["aten::mm", "aten::softmax", "aten::clone"])
def test_a_replayed_kernel_is_the_traced_one_by_its_configuration(tasks, op):
    entries = measure(tasks[op], Options(device="cuda"))

    assert [entry.outcome for entry in entries] == [Outcome.MEASURED] * len(entries), entries
    named = [entry for entry in entries if entry.kernel]
    assert all(entry.match is Match.CONFIGURATION for entry in named)
    assert all(entry.match_ratio == 1 for entry in entries)
    assert all(entry.dispatch.median_ns > 0 for entry in entries)
    assert all(entry.launch.median_ns > 0 for entry in named)


def test_what_the_device_cannot_hold_is_out_of_memory(tasks):
    options = Options(device="cuda", max_bytes=1024)

    (entry, *_) = measure(tasks["aten::mm"], options)

    assert entry.outcome is Outcome.OUT_OF_MEMORY
