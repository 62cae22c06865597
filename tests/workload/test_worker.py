"""What another host makes of a worker's steps is told by a real capture beside the traffic, or why it is not."""

import os
import shutil
from pathlib import Path

import pytest

from taxbreak_vllm.model.errors import SettingsError, WorkloadError
from taxbreak_vllm.traffic.log import Log
from taxbreak_vllm.traffic.rows import Setup, Updated
from taxbreak_vllm.workload.task import DECODE, PREFILL
from taxbreak_vllm.workload.worker import worker_told

STEP = Path(__file__).parents[1] / "data" / "cpu_decode"  # a decode step of a real vLLM on the CPU


@pytest.fixture
def spool(tmp_path):
    traffic = tmp_path / "server" / "traffic"
    traffic.mkdir(parents=True)
    Log(traffic, Setup(server_id="server", source="engine-0"), max_bytes=2**20).append([Updated(1)])
    return tmp_path


def capture(spool, name="a", *, at_s=1000):
    to = spool / "server" / "0" / name
    shutil.copytree(STEP, to)
    os.utime(to / "step.json", (at_s, at_s))
    return to


def test_a_slower_host_makes_a_captured_step_longer_by_what_whatif_says(spool):
    capture(spool)

    told = worker_told(spool, host=1.3)

    (step,) = told.steps
    assert (step.kind, step.is_iteration) == (DECODE, True)
    assert 1.05 < step.predicted_ns / step.plain_ns < 1.3
    assert step.low_ns <= step.predicted_ns <= step.high_ns
    assert told.unknown == {PREFILL: "no capture of a prefill step is beside the traffic"}


def test_the_newest_captures_are_asked_and_one_that_cannot_be_read_says_so(spool):
    for number in range(5):
        (capture(spool, f"{number}", at_s=1000 - number) / "trace.json.gz").write_bytes(b"{")
    capture(spool, "old", at_s=1)

    told = worker_told(spool, host=0.8)

    assert told.steps == ()
    assert str(spool / "server" / "0") in told.unknown[DECODE]


def test_without_captures_nothing_is_known(spool):
    told = worker_told(spool, host=2)

    assert told.steps == ()
    assert told.unknown.keys() == {DECODE, PREFILL}


@pytest.mark.parametrize(
    ("graph", "says"),
    [("full", "--graph full: its ops compute on the host"), ("piecewise", "--graph piecewise: needs a measured cost")],
)
def test_a_graph_that_no_capture_tells_of_is_refused_by_name(spool, graph, says):
    capture(spool)

    with pytest.raises(WorkloadError, match=says):
        worker_told(spool, graph=graph)


def test_a_graph_is_not_told_without_captures_and_one_that_is_none_is_refused(spool):
    with pytest.raises(WorkloadError, match="--graph full: no capture of a decode step"):
        worker_told(spool, graph="full")
    with pytest.raises(SettingsError, match="--graph half"):
        worker_told(spool, graph="half")
