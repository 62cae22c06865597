"""The extension on a real vLLM worker: captures of both phases, on request too, and beside vLLM's own profiler."""

import gzip
import json
import statistics

import pytest

from taxbreak_vllm.model.step import STEP_BUCKETS_NS, Phase
from taxbreak_vllm.spool.spool import Spool

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("offline")


@pytest.fixture(scope="module")
def said(folder, tiny_llama, run_offline):
    """Run the script; return what the worker said."""
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TAXBREAK_SAMPLE_EVERY": "5"}
    run_offline("offline_llm.py", folder, tiny_llama, folder, **settings)
    return json.loads((folder / "said.json").read_text())


@pytest.fixture(scope="module")
def captures(said, folder):
    """What was recorded, which is something of each phase."""
    captures = Spool(folder / "spool", max_bytes=2**30, max_captures=10**6).captures()
    assert {_info(capture).phase for capture in captures} == {Phase.PREFILL, Phase.DECODE}
    return captures


def _events(capture):
    return json.loads(gzip.decompress(capture.trace_path.read_bytes()))["traceEvents"]


def test_the_worker_names_itself_before_the_first_request(said):
    server = said["asleep"]["server"]

    assert said["asleep"]["steps"] == []
    assert (server["engine"], server["rank"], server["dtype"], server["device_type"]) == ("0", 0, "float32", "cpu")
    assert server["model_name"].endswith("tiny-llama")
    assert server["vllm"]
    assert server["torch"]


@pytest.mark.parametrize(("phase", "num_steps"), [(Phase.PREFILL, 10), (Phase.DECODE, 70)])
def test_one_step_in_five_of_each_phase_is_recorded_and_the_others_are_timed(said, captures, phase, num_steps):
    (plain,) = [kind for kind in said["sampled"]["steps"] if kind["phase"] == phase]
    periodic = [info for info in map(_info, captures) if info.phase is phase and info.capture_id is None]

    assert num_steps - num_steps // 5 <= plain["num_steps"] <= num_steps
    assert plain["num_steps"] < num_steps or said["sampled"]["dropped"]["backlog"]  # storing takes as long as the steps
    assert sum(plain["bucket_counts"]) == plain["num_steps"]
    assert len(plain["bucket_counts"]) == len(STEP_BUCKETS_NS) + 1
    assert len(periodic) <= num_steps // 5 + 10  # fewer where the one before was still being stored
    assert periodic or said["sampled"]["dropped"]["backlog"]


def _info(capture):
    return capture.read_info()


def test_a_capture_tells_its_batch_and_its_plain_twin(captures):
    for info in map(_info, captures):
        assert info.batch.requests == 4
        assert info.batch.output_tokens == 4
        assert info.batch.prompt_tokens == (0 if info.phase is Phase.DECODE else 4 * len("prompt number 0"))
        assert (info.graph_mode, info.async_output) == ("none", False)
        assert info.num_plain > 0
        assert info.plain_window_ns > 0
        assert info.overhead_ns > 0


def test_the_window_is_an_annotation_in_the_trace_and_holds_the_steps_ops(captures):
    ratios = []
    for capture in captures:
        events, info = _events(capture), capture.read_info()
        (window,) = [event for event in events if event["name"] == f"taxbreak.step:{info.step_id}"]
        ops = [event for event in events if event.get("cat") == "cpu_op"]
        inside = [op for op in ops if window["ts"] <= op["ts"] <= op["ts"] + op["dur"] <= window["ts"] + window["dur"]]

        assert window["cat"] == "user_annotation"
        assert len(inside) > 100
        assert any("Input Dims" in op["args"] for op in inside)
        ratios.append(window["dur"] * 1000 / info.window_ns)
    assert statistics.median(ratios) == pytest.approx(1, abs=0.1)  # any one may be interrupted between the two clocks


def test_a_request_gets_as_many_steps_as_it_wants_with_stacks(said, captures):
    wanted = [capture for capture in captures if capture.read_info().capture_id == "wanted"]

    assert (said["asked"]["capture_id"], said["asked"]["capture_recorded"]) == ("wanted", 3)
    assert len(wanted) == 3
    assert all(capture.read_info().phase is Phase.DECODE for capture in wanted)
    assert any(event.get("cat") == "python_function" for event in _events(wanted[0]))


def test_vllms_own_profile_is_left_alone_and_the_samples_given_up_are_counted(said, folder):
    assert set(said["beside_theirs"]["dropped"]) - {"backlog"} == {"vllm_profiler"}
    assert list((folder / "theirs").rglob("*.json*"))


def test_nothing_of_a_prompt_is_in_a_capture(captures):
    for capture in captures:
        assert b"prompt number" not in gzip.decompress(capture.trace_path.read_bytes())


def test_vllms_log_tells_that_it_is_watched_and_no_fault(said, folder):
    log = (folder / "offline_llm.py.log").read_text()

    assert log.count("taxbreak: timing every step") == 1
    assert "Traceback" not in log
    assert "USDT" not in log
