"""Which event a call waits for, where a recording does not tell."""

import pytest
from rig.changed import changed
from rig.program import COPIES, Kernel, Op, Record, Server, Step, Synchronize, Wait, Work
from rig.server import run
from rig.servers import GEMM
from rig.trace import to_json, whole

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.changes import Change, Range
from taxbreak_vllm.whatif.predict import predict

SIDE = COPIES + 1


@pytest.fixture
def basis_of(rules, tmp_path):
    def basis_of(server, *, with_syncs=False):
        path = tmp_path / "trace.json"
        path.write_text(to_json(whole(run(server), with_syncs=with_syncs)))
        return Basis(Recording(read_events(path), Terms(rules=rules, floor_ns=6_000)))

    return basis_of


def op(ns, **how):
    return Op("aten::add", (Work(2_000), Kernel(ns, 4_000, **how)))


def one_of_two(event):
    """Two streams end 800 ns apart; the host waits for one of them, and returns 30 µs after it."""
    fork = (Record("fork", 1_000), Wait("fork", 1_000, SIDE), op(60_000, stream=SIDE, name=GEMM))
    waits = (Record("side", 1_000, SIDE), op(52_200), Record("main", 1_000), Synchronize(2_000, event))
    step = Step((Work(5_000), op(4_000), *fork, *waits, Work(20_000)))
    return Server(steps=(step,) * 6, steps_ahead=0, has_output_thread=False, return_ns=30_000)


def length_ns(server):
    it = run(server)
    ends = [span.end_ns for span in it.spans] + [activity.end_ns for activity in it.activities]
    return max(ends) - min(span.start_ns for span in it.spans)


@pytest.mark.parametrize("event", ["main", "side"])
@pytest.mark.parametrize(("family", "times"), [(Family.GEMM, 2.0), (Family.GEMM, 0.3), (Family.ELEMENTWISE, 2.0)])
def test_an_interval_holds_whichever_of_two_events_it_was_and_a_told_one_is_narrow(basis_of, event, family, times):
    server = one_of_two(event)
    change = Change(kernels={family: Range(low=times, high=times)})
    true_ns = length_ns(changed(server, kernels={family: times}))

    open_, told = (
        predict(basis.recording, change, named="", basis=basis).window
        for basis in (basis_of(server), basis_of(server, with_syncs=True))
    )

    assert told.predicted_ns == pytest.approx(true_ns, rel=0.005)
    assert open_.low_ns * 0.98 <= true_ns <= open_.high_ns * 1.02
    assert told.high_ns - told.low_ns < 0.1 * (open_.high_ns - open_.low_ns)


def test_rivals_are_few_and_none_where_the_recording_decides(basis_of):
    assert 0 < len(basis_of(one_of_two("main")).model.rivals) <= 4
    assert not basis_of(one_of_two("main"), with_syncs=True).model.rivals


def test_a_stream_that_may_wait_for_another_may_wait_for_none(basis_of):
    """Two streams work beside one another, and a third waits for one of them, which was done first."""
    third = (Record("main", 1_000), Wait("main", 1_000, COPIES), op(40_000, stream=COPIES))
    step = Step((Work(5_000), op(2_000, stream=SIDE, name=GEMM), op(60_000), *third, Synchronize(2_000)))
    server = Server(steps=(step,) * 6, steps_ahead=0, has_output_thread=False)
    change = Change(kernels={Family.GEMM: Range(low=60.0, high=60.0)})
    true_ns = length_ns(changed(server, kernels={Family.GEMM: 60.0}))

    inferred, told = (
        predict(basis.recording, change, named="", basis=basis).window
        for basis in (basis_of(server), basis_of(server, with_syncs=True))
    )

    assert inferred.low_ns * 0.98 <= true_ns <= inferred.high_ns * 1.02
    assert inferred.high_ns > 1.02 * true_ns
    assert told.predicted_ns == pytest.approx(true_ns, rel=0.005)
