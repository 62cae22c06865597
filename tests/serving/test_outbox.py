import gzip
import json
import os
import time
from dataclasses import replace

import pytest

from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.model.worker import CaptureRequest, Control, WorkerState
from taxbreak_vllm.serving.drops import Drops
from taxbreak_vllm.serving.outbox import HEARTBEAT_NS, PUBLISH_NS, Outbox
from taxbreak_vllm.serving.recorder import RecordedStep
from taxbreak_vllm.serving.sampling.sampler import CaptureProgress
from taxbreak_vllm.serving.tokens import SampledTokens
from taxbreak_vllm.spool.spool import Spool

SERVER = Server(server_id="server", rank=3)


class _Profile:
    def __init__(self, text="{}", error=None):
        self.text = text
        self.error = error

    def export(self, path):
        path.write_text(self.text)
        if self.error is not None:
            raise self.error


class _Worker:
    """What the outbox is told by the rest of a worker."""

    def __init__(self):
        self.now_ns = 0
        self.num_samples = 0
        self.cpu_ns = 0
        self.requests = []
        self.controls = []
        self.has_news = False

    def follow(self, request, control):
        self.requests.append(request)
        self.controls.append(control)
        return self.has_news

    def state(self):
        return WorkerState(
            server=SERVER,
            started_unix_ns=0,
            updated_unix_ns=self.now_ns,
            enabled=True,
            num_samples=self.num_samples,
            serving_ns=self.now_ns,
        )


@pytest.fixture
def worker():
    return _Worker()


@pytest.fixture
def drops():
    return Drops()


@pytest.fixture
def open_outbox(tmp_path, worker, drops):
    def open_outbox(*, root=tmp_path / "spool", max_captures=9, max_trace_bytes=2**16, tokens_timeout_s=0):
        return Outbox(
            Spool(root, max_bytes=2**20, max_captures=max_captures),
            "server",
            drops,
            state=worker.state,
            follow=worker.follow,
            max_trace_bytes=max_trace_bytes,
            tokens_timeout_s=tokens_timeout_s,
            now_ns=lambda: worker.now_ns,
            cpu_ns=lambda: worker.cpu_ns,
        )

    return open_outbox


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)


def _recording(step_id="s1", profile=None, progress=None, tokens=None):
    info = StepInfo(
        step_id=step_id,
        step_index=1,
        server=SERVER,
        phase=Phase.DECODE,
        batch=Batch(),
        graph_mode=GraphMode.NONE,
        started_unix_ns=0,
        window_ns=5,
    )
    return RecordedStep(info, profile or _Profile(), progress, tokens or SampledTokens.none())


def _store(outbox, recording):
    outbox.offer(recording)
    outbox.turn(wait_s=0)


def test_a_recording_becomes_a_capture_of_two_files(open_outbox, spool, drops):
    outbox = open_outbox()
    recording = _recording(profile=_Profile('{"traceEvents": []}'))

    outbox.offer(recording)
    outbox.turn(wait_s=0)

    (capture,) = spool.captures()
    assert capture.read_info() == replace(recording.info, batch=Batch(output_tokens=0, accepted_tokens=0))
    assert json.loads(gzip.decompress(capture.trace_path.read_bytes())) == {"traceEvents": []}
    assert sorted(os.listdir(capture.path)) == ["step.json", "trace.json.gz"]
    assert outbox.num_stored == 1
    assert drops.counts() == {}


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (_Profile(error=RuntimeError("kineto")), "export"),
        (_Profile(error=OSError(28, "No space left on device")), "spool"),
        (_Profile(os.urandom(2**17).hex()), "too_large"),
    ],
)
def test_what_cannot_be_stored_is_counted_by_its_reason_and_leaves_nothing(open_outbox, spool, drops, profile, reason):
    outbox = open_outbox()
    progress = CaptureProgress(CaptureRequest(capture_id="c", steps=1), max_steps=9)

    _store(outbox, _recording(profile=profile, progress=progress))

    assert drops.counts() == {reason: 1}
    assert (progress.num_recorded, progress.num_lost) == (0, 1)
    assert spool.captures() == []
    assert os.listdir(spool.root / "server" / "3") == ["state.json"]
    _store(outbox, _recording("s2"))
    assert outbox.num_stored == 1


def test_a_spool_that_cannot_be_written_costs_samples_and_nothing_else(open_outbox, drops, tmp_path, worker, caplog):
    (tmp_path / "file").touch()
    outbox = open_outbox(root=tmp_path / "file" / "spool")

    for number in range(3):
        worker.now_ns += PUBLISH_NS
        outbox.offer(_recording(f"s{number}"))
        outbox.turn(wait_s=0)

    assert drops.counts() == {"spool": 3}
    assert len([record for record in caplog.records if "file" in record.getMessage()]) == 2  # a sample, the state


def test_a_folder_that_is_no_spool_costs_samples_and_nothing_else(open_outbox, drops, tmp_path, worker, caplog):
    (tmp_path / "thesis.txt").touch()
    tmp_path.chmod(0o777)
    outbox = open_outbox(root=tmp_path)

    for number in range(3):
        worker.now_ns += PUBLISH_NS
        _store(outbox, _recording(f"s{number}"))

    assert drops.counts() == {"spool": 3}
    assert len([record for record in caplog.records if "may have written" in record.getMessage()]) == 2  # sample, state
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_it_is_busy_until_a_recording_is_stored_or_lost(open_outbox):
    outbox = open_outbox()
    busy = []

    for profile in (_Profile(), _Profile(error=RuntimeError("kineto"))):
        outbox.offer(_recording(profile=profile))
        busy.append(outbox.is_busy)
        outbox.turn(wait_s=0)
        busy.append(outbox.is_busy)

    assert busy == [True, False, True, False]


def test_captures_evicted_before_anybody_read_them_are_counted(open_outbox, spool, drops):
    outbox = open_outbox(max_captures=2)

    for number in range(3):
        _store(outbox, _recording(f"s{number}"))

    assert {capture.step_id for capture in spool.captures()} == {"s1", "s2"}
    assert drops.counts() == {"evicted": 1}


def test_a_request_is_told_with_every_turn_and_so_is_its_end(open_outbox, spool, worker):
    outbox = open_outbox()
    request = CaptureRequest(capture_id="c", steps=2)

    outbox.turn(wait_s=0)
    spool.put_request("server", request)
    outbox.turn(wait_s=0)
    spool.cancel_request("server", "c")
    outbox.turn(wait_s=0)

    assert worker.requests == [None, request, None]


def test_what_was_recorded_for_a_request_is_counted_once_it_is_stored(open_outbox):
    progress = CaptureProgress(CaptureRequest(capture_id="c", steps=1), max_steps=9)

    _store(open_outbox(), _recording(progress=progress))

    assert (progress.num_recorded, progress.num_lost) == (1, 0)


def test_the_state_is_published_once_a_second_when_it_changed_and_as_a_heartbeat_when_not(open_outbox, spool, worker):
    outbox = open_outbox()

    def published_at(now_ns, num_samples):
        worker.now_ns, worker.num_samples = now_ns, num_samples
        outbox.turn(wait_s=0)
        (state,) = spool.states()
        return state.updated_unix_ns

    assert published_at(0, 0) == 0
    assert published_at(PUBLISH_NS - 1, 1) == 0
    assert published_at(PUBLISH_NS, 1) == PUBLISH_NS
    assert published_at(3 * PUBLISH_NS, 1) == PUBLISH_NS
    assert published_at(PUBLISH_NS + HEARTBEAT_NS, 1) == PUBLISH_NS + HEARTBEAT_NS


class _Slow(_Profile):
    """Exports for 700 ns, on a core for 300 of them."""

    def __init__(self, worker):
        super().__init__()
        self.worker = worker

    def export(self, path):
        super().export(path)
        self.worker.now_ns += 700
        self.worker.cpu_ns += 300


def test_what_storing_costs_is_the_threads_cpu_time_and_all_the_time_of_an_export(open_outbox, worker):
    outbox = open_outbox()
    progress = CaptureProgress(CaptureRequest(capture_id="c", steps=1), max_steps=1)

    _store(outbox, _recording("s0", _Slow(worker)))
    assert (outbox.cost_ns, outbox.asked_cost_ns) == (700, 0)

    _store(outbox, _recording("s1", _Slow(worker), progress))
    assert (outbox.cost_ns, outbox.asked_cost_ns) == (1400, 700)


def test_control_is_told_with_every_turn_and_its_effect_published_at_once(open_outbox, spool, worker):
    outbox = open_outbox()
    outbox.turn(wait_s=0)
    control = spool.put_control("server", Control(control_id="c", enabled=False))
    worker.now_ns, worker.num_samples, worker.has_news = 1, 5, True

    outbox.turn(wait_s=0)

    assert worker.controls == [None, control]
    assert [state.num_samples for state in spool.states()] == [5]


def test_closing_stores_what_is_pending_and_publishes_a_last_state(open_outbox, spool, worker):
    outbox = open_outbox()
    outbox.start()

    worker.num_samples = 3
    outbox.offer(_recording())
    outbox.close()

    assert len(spool.captures()) == 1
    assert [state.num_samples for state in spool.states()] == [3]


def test_a_fault_of_our_own_does_not_end_the_thread_and_is_counted(open_outbox, worker, drops, spool):
    state, faults = worker.state, iter([RuntimeError("of ours"), RuntimeError("of ours")])

    def fail_twice():
        for error in faults:
            raise error
        return state()

    worker.state = fail_twice
    outbox = open_outbox()
    outbox.start()
    outbox.offer(_recording())
    deadline_s = time.monotonic() + 30
    while not spool.states():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    outbox.close()

    assert drops.counts() == {"outbox": 2}
    assert [capture.step_id for capture in spool.captures()] == ["s1"]


class _Tokens(SampledTokens):
    """Tokens that come or don't; notes how long each wait would have been."""

    def __init__(self, *arrivals):
        super().__init__()
        self.arrivals = list(arrivals)
        self.waits_s = []

    def wait(self, timeout_s):
        self.waits_s.append(timeout_s)
        self.counts = (5, None)
        return self.arrivals.pop(0)


def test_a_rank_whose_outputs_vllm_never_fetches_is_waited_for_once_and_again_where_it_does(open_outbox, spool):
    outbox, tokens = open_outbox(tokens_timeout_s=1), _Tokens(True, False, False, True, True)

    for number in range(5):
        _store(outbox, _recording(f"s{number}", tokens=tokens))

    assert tokens.waits_s == [1, 1, 0, 0, 1]
    assert [capture.read_info().batch.output_tokens for capture in spool.captures()] == [5] * 5


def test_records_of_the_device_are_counted_as_they_are_stored(open_outbox):
    cats = ["kernel", "kernel", "gpu_memcpy", "gpu_memset", "cpu_op", "cuda_runtime", "gpu_user_annotation"]
    outbox = open_outbox()

    for _ in range(2):
        outbox.offer(_recording(profile=_Profile(json.dumps({"traceEvents": [{"cat": cat} for cat in cats]}))))
        outbox.turn(wait_s=0)

    assert outbox.num_device_records == 8
