"""Recordings that nothing can be predicted from: which gate says so."""

import pytest
from rig import loss
from rig.program import Kernel, Op, Server, Step, Work
from rig.server import run
from rig.servers import device_bound, tokens_later
from rig.trace import bracket, to_json, whole

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.whatif.changes import HOST, Change, Range
from taxbreak_vllm.whatif.predict import predict

HALF_HOST = Change(host=dict.fromkeys(HOST, Range(low=0.5, high=0.5)))
HALF_KERNELS = Change(kernels={Family.ELEMENTWISE: Range(low=0.5, high=0.5)})


@pytest.fixture
def ask(rules, tmp_path):
    def ask(trace, change=HALF_HOST):
        path = tmp_path / "trace.json"
        path.write_text(to_json(trace))
        return predict(Recording(read_events(path), Terms(rules=rules, floor_ns=6_000)), change, named="")

    return ask


def failed(answer):
    return {gate.name for gate in answer.gates if not gate.passes}


def test_a_whole_recording_passes_all(ask):
    answer = ask(whole(run(device_bound())))

    assert failed(answer) == set()
    assert answer.refused is None
    assert len(answer.gates) == 6


def test_kernels_without_their_launch_are_named(ask):
    answer = ask(loss.links(whole(run(device_bound(4))), 10))

    assert "unlinked" in failed(answer)
    assert "unlinked is 10.0%, at most 5% passes" in answer.refused
    assert answer.window is None


def test_work_from_before_the_recording_is_pinned_and_the_host_cannot_be_told(ask):
    answer = ask(bracket(run(device_bound(8)), 4, 7))

    assert "translation" in failed(answer)
    assert answer.refused


def test_collectives_that_waited_for_peers_are_no_basis(ask):
    def reduce(peer_ns):
        return Op("vllm::all_reduce", (Kernel(10_000, 4_000, "ncclDevKernel_AllReduce_Sum", peer_ns=peer_ns),))

    body = (Work(3_000), reduce(0), Work(3_000), reduce(200_000))
    answer = ask(whole(run(Server(steps=(Step(body, tokens_later()),) * 4))))

    assert "peers" in failed(answer)
