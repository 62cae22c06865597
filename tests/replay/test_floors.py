"""The least costs of this machine, measured for real."""

import pytest

torch = pytest.importorskip("torch", reason="replay needs torch")


from taxbreak_vllm.machine.processor import processor_name  # noqa: E402
from taxbreak_vllm.model.baseline import FloorKind  # noqa: E402 - after the check for torch
from taxbreak_vllm.replay.floors import here, measure_floors, profiler_op_cost  # noqa: E402


@pytest.fixture(scope="module")
def floors():
    return measure_floors("cpu", now_ns=lambda: 77)


def test_on_the_cpu_there_are_all_floors_but_those_of_a_launch(floors):
    kinds = {floor.kind for floor in floors.floors}

    assert kinds == {FloorKind.DISPATCH, FloorKind.ATEN_DISPATCH, FloorKind.PROFILER_OP}
    assert floors.median_ns(FloorKind.KERNEL, 1) is None
    assert floors.graph_points() == ()
    assert any("no launch floors" in note for note in floors.notes)


@pytest.mark.parametrize("kind", [FloorKind.DISPATCH, FloorKind.ATEN_DISPATCH, FloorKind.PROFILER_OP])
def test_a_floor_is_the_median_of_many_and_of_the_order_of_a_microsecond(floors, kind):
    (spread,) = [floor.spread for floor in floors.floors if floor.kind is kind]

    assert 50 < spread.median_ns < 100_000
    assert spread.mad_ns >= 0  # how wide is the machine's affair, which may be busy
    assert spread.samples >= 20


def test_how_and_where_it_was_measured_is_told(floors):
    environment = here("cpu")

    assert floors.clock == "kineto"
    assert floors.kernel_source == ""
    assert floors.host_cpu == processor_name() == environment.device_name != ""
    assert (environment.device_type, environment.torch, environment.driver) == ("cpu", torch.__version__, "")
    assert floors.measured_unix_ns == 77


def test_what_recording_adds_is_told_by_the_clock_it_is_given():
    """A clock on which plain calls take no time and recorded ones 10 µs."""
    now_ns = 0

    def clock():
        nonlocal now_ns
        if torch.autograd.profiler._is_profiler_enabled:
            now_ns += 64 * 5 * 10_000
        return now_ns

    spread = profiler_op_cost(clock)

    assert (spread.median_ns, spread.mad_ns) == (10_000, 0)
