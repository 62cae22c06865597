"""Loops that ask for an event until it has passed."""

from dataclasses import replace

import numpy as np
import pytest
from rig.program import Call, Kernel, Op, Poll, Record, Server, Step, Work
from rig.server import run
from rig.servers import device_bound, host_bound
from rig.trace import to_json, whole

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.changes import HOST, Change, Range
from taxbreak_vllm.whatif.predict import predict


@pytest.fixture
def basis_of(rules, tmp_path):
    def basis_of(server):
        path = tmp_path / "trace.json"
        path.write_text(to_json(whole(run(server))))
        return Basis(Recording(read_events(path), Terms(rules=rules, floor_ns=6_000)))

    return basis_of


def loops(basis):
    """Return of each wait how many queries it is made of, and how long after what it waits for it ended."""
    blocking, calls = basis.model.sources.blocking, basis.model.sources.calls
    a = basis.model.sources.measured.activities
    assert blocking.is_poll.all()
    late_ns = np.where(blocking.awaited >= 0, calls.end_ns[blocking.call] - a.end_ns[blocking.awaited], -1)
    return list(zip((blocking.call - blocking.first + 1).tolist(), late_ns.tolist(), strict=True))


def asking(pause_ns, *, kernel_ns=300_000, before=()):
    op = Op("aten::add", (Work(2_000), Kernel(kernel_ns, 4_000)))
    step = Step((Work(5_000), op, Record("e", 1_000), *before, Poll(1_000, "e", pause_ns), Work(3_000)))
    return Server(steps=(step,) * 5, steps_ahead=0, has_output_thread=False, engine_ns=20_000)


@pytest.mark.parametrize("pause_ns", [500, 30_000, 200_000])
def test_a_loop_is_one_wait_that_ends_with_the_query_after_its_event(basis_of, pause_ns):
    found = loops(basis_of(asking(pause_ns)))

    assert len(found) == 5
    assert all(queries > 1 and 0 <= late_ns <= pause_ns + 2_000 for queries, late_ns in found)


def test_an_allocator_that_asks_within_ops_waits_for_nothing(basis_of):
    asks = Op("aten::empty", (Call(500, "cudaEventQuery"),) * 6)
    op = Op("aten::add", (Work(2_000), Kernel(300_000, 4_000)))
    step = Step((Work(5_000), op, asks, Work(3_000)))

    basis = basis_of(Server(steps=(step,) * 5, steps_ahead=0, has_output_thread=False))

    assert not len(basis.model.sources.blocking.call)


def ask(basis, *, host=1.0, kernels=1.0):
    change = Change(
        host=dict.fromkeys(HOST, Range(low=host, high=host)),
        kernels={Family.ELEMENTWISE: Range(low=kernels, high=kernels)},
    )
    return predict(basis.recording, change, named="", basis=basis)


def test_a_loop_is_no_work_of_the_host(basis_of):
    """All else of a step is the host's to the device's as 1 to 10; what it takes is what the device does."""
    basis = basis_of(asking(2_000))

    quick_host, quick_device = ask(basis, host=0.5), ask(basis, kernels=0.5)

    assert quick_host.window.predicted_ns == pytest.approx(0.95 * quick_host.window.observed_ns, rel=0.02)
    assert quick_device.window.predicted_ns == pytest.approx(0.55 * quick_device.window.observed_ns, rel=0.03)


def test_the_interval_holds_a_query_right_before_its_event_and_one_right_after(basis_of):
    window = ask(basis_of(asking(100_000)), kernels=0.5).window

    assert window.high_ns - window.low_ns >= 4 * 100_000


def test_one_query_that_came_late_may_have_to_ask_again(basis_of):
    """Its event had always passed, so nothing shows which it was: the answer is open upwards."""
    window = ask(basis_of(asking(2_000, kernel_ns=5_000, before=(Work(60_000),))), kernels=20).window

    assert window.high_ns > window.observed_ns + 4 * 30_000


@pytest.mark.parametrize("pause_ns", [5_000, 90_000])
@pytest.mark.parametrize("server", [device_bound(5), host_bound(5)], ids=["device", "host"])
def test_a_thread_that_only_asks_is_told_from_one_that_works(basis_of, server, pause_ns):
    found = loops(basis_of(replace(server, pause_ns=pause_ns)))

    assert len(found) == 5
    assert all(late_ns <= pause_ns + 2_000 for queries, late_ns in found if queries > 1)


def test_a_loop_whose_end_nothing_explains_is_unexplained(basis_of):
    """It asks for what another process does."""
    server = asking(2_000)
    queries = (Call(1_000, "cudaEventQuery"), Work(2_000)) * 100
    steps = tuple(replace(step, execute=(*step.execute[:-2], *queries, Work(3_000))) for step in server.steps)

    answer = ask(basis_of(replace(server, steps=steps)), host=0.5)

    assert answer.refused is not None
    assert "unexplained" in answer.refused
