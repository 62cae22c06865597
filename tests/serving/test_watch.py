import gzip
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from taxbreak_vllm.model import cupti
from taxbreak_vllm.model.step import PHASES, Batch, Phase
from taxbreak_vllm.model.worker import CaptureRequest, Control
from taxbreak_vllm.serving.sampling.stalls import Detail
from taxbreak_vllm.spool.spool import Spool


class _Output:
    """Stands for vLLM's ModelRunnerOutput."""

    def __init__(self, *sampled, ids="ab"):
        self.req_id_to_index = {req_id: index for index, req_id in enumerate(ids)}
        self.sampled_token_ids = list(sampled)


class _AsyncOutput:
    """Stands for the output of vLLM's second runner: a buffer that the device still writes, lists once asked for."""

    def __init__(self, *sampled, ids="ab"):
        self._output = _Output(*sampled, ids=ids)
        self.sampled_token_ids = np.array([[7, 0, 0, 0], [7, 0, 0, 0]])

    def get_output(self):
        return self._output


def _run(watch, step, output=None, *, worker=None, has_sampled=True):
    _step(watch, step, output, worker=worker, has_sampled=has_sampled)
    watch.abandon()  # no step follows: a sample that has ended is kept


def _step(watch, step, output=None, *, worker=None, has_sampled=True):
    watch.begin(worker, step)
    if watch.is_recording:
        watch.pause()
        watch.resume()
    watch.end(output or _Output([1], [2]), has_sampled=has_sampled)


def _captures(watch, tmp_path):
    watch.outbox.turn(wait_s=0)
    return Spool(tmp_path / "spool", max_bytes=1, max_captures=1).captures()


def test_every_plain_step_is_counted_by_phase(open_watch, decode, schedule):
    watch = open_watch(sample_every=1000)

    for _ in range(3):
        _run(watch, decode)
    _run(watch, schedule({"a": 5}, new=[("a", 5, 0)]))
    _run(watch, None, has_sampled=False)

    # the clock goes on by 1 µs with each of the two readings of a step
    assert [(h.phase, h.num_steps, h.sum_ns) for h in watch.state().steps] == [
        (Phase.DECODE, 3, 3000),
        (Phase.PREFILL, 1, 1000),
        (Phase.IDLE, 1, 1000),
    ]


def test_the_phase_of_the_step_is_there_once_it_has_begun_until_a_fault_of_ours(open_watch, decode, schedule):
    watch = open_watch(sample_every=2)
    phases = []
    for step in (schedule({"a": 5}, new=[("a", 5, 0)]), decode):
        _run(watch, step)
        phases.append(PHASES[watch.phase_index])
    watch.outbox.offer = None
    _run(watch, decode)

    assert phases == [Phase.PREFILL, Phase.DECODE]
    assert watch.phase_index == -1


def test_a_picked_step_becomes_a_capture_beside_its_plain_twin(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=4)

    for _ in range(4):
        _run(watch, decode)

    (capture,) = _captures(watch, tmp_path)
    info = capture.read_info()
    assert info.step_id == capture.step_id == "server.r0.s4"
    assert (info.phase, info.batch) == (
        Phase.DECODE,
        Batch(requests=2, prompt_tokens=0, output_tokens=2, draft_tokens=0, accepted_tokens=0),
    )
    assert (info.window_ns, info.plain_window_ns, info.num_plain) == (2000, 1000, 3)  # one reading as it pauses
    assert info.overhead_ns == 2000  # the readings before the profiler starts and after it stopped
    assert (info.graph_mode, info.async_output, info.capture_id) == ("none", False, None)
    assert b"server.r0.s4" in gzip.decompress(capture.trace_path.read_bytes())
    assert [h.num_steps for h in watch.state().steps] == [3]


def test_sampled_tokens_are_counted_where_they_are_at_hand(open_watch, schedule, tmp_path):
    watch = open_watch(sample_every=2)
    verify = schedule({"a": 4, "b": 4}, cached=[("a", 3), ("b", 3)], drafts={"a": 3, "b": 3})

    for _ in range(2):
        _run(watch, verify, _Output([1, 2, 3], [4]))

    (capture,) = _captures(watch, tmp_path)
    assert capture.read_info().batch.output_tokens == 4


def test_tokens_still_on_the_device_are_counted_once_vllm_has_fetched_them_and_recording_goes_on(
    open_watch, schedule, tmp_path
):
    watch = open_watch(sample_every=2)
    verify = schedule({"a": 4, "b": 4}, cached=[("a", 3), ("b", 3)], drafts={"a": 3, "b": 3})

    for _ in range(4):
        output = _AsyncOutput([1, 2, 3], [4])
        _run(watch, verify, output)
        assert output.get_output().sampled_token_ids == [[1, 2, 3], [4]]
        watch.outbox.turn(wait_s=0)

    captures = _captures(watch, tmp_path)
    assert [(c.read_info().async_output, c.read_info().batch.output_tokens) for c in captures] == [(True, 4)] * 2
    assert [capture.read_info().batch.accepted_tokens for capture in captures] == [2, 2]
    assert watch.state().dropped == {}


def test_a_step_that_samples_nothing_has_no_output_tokens(open_watch, schedule, tmp_path):
    watch = open_watch(sample_every=2)

    for _ in range(2):
        _run(watch, schedule({"a": 5}, new=[("a", 5, 0)]), has_sampled=False)

    (capture,) = _captures(watch, tmp_path)
    assert capture.read_info().batch == Batch(
        requests=1, prompt_tokens=5, output_tokens=0, draft_tokens=0, accepted_tokens=0
    )


def test_a_request_records_consecutive_steps_and_its_progress_is_published(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=1000)
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=3, phase=Phase.DECODE))
    watch.outbox.turn(wait_s=0)

    for _ in range(5):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert [capture.read_info().capture_id for capture in spool.captures()] == ["c", "c", "c"]
    assert [capture.read_info().step_index for capture in spool.captures()] == [1, 2, 3]
    assert (watch.state().capture_id, watch.state().capture_recorded) == ("c", 3)


def test_stacks_are_recorded_where_a_request_wants_them(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=2)
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=1, stacks=True))
    watch.outbox.turn(wait_s=0)

    for _ in range(2):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert [profile.detail for profile in profiles] == [Detail.STACKS, Detail.SHAPES]


def test_while_a_recording_is_being_stored_no_step_is_recorded_or_compared_with(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=2)
    for _ in range(7):
        _run(watch, decode)
    assert watch.state().dropped == {"backlog": 2}
    assert len(profiles) == 1

    watch.outbox.turn(wait_s=0)
    _run(watch, decode)

    captures = _captures(watch, tmp_path)
    assert [capture.read_info().step_index for capture in captures] == [2, 8]
    assert captures[1].read_info().num_plain == 1
    assert [h.num_steps for h in watch.state().steps] == [6]


def test_a_rank_that_only_times_leaves_out_what_another_records(open_watch, decode, profiles):
    watch = open_watch(sample_every=5, records=False)

    for _ in range(10):
        _run(watch, decode)

    assert profiles == []
    assert [h.num_steps for h in watch.state().steps] == [8]


def test_an_engine_whose_steps_another_one_draws_times_them_all_whatever_is_asked(
    open_watch, decode, profiles, tmp_path
):
    watch = open_watch(sample_every=2, records=False, off_reason="lockstep")
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=3))
    state = _control(tmp_path, watch, control_id="1", enabled=True)

    for _ in range(6):
        _run(watch, decode)

    assert profiles == []
    assert [h.num_steps for h in watch.state().steps] == [6]
    assert (state.enabled, state.records, state.off_reason, state.control_id) == (False, False, "lockstep", "1")


def test_switched_off_it_times_and_never_records(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=2, enabled=False)
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=3))
    watch.outbox.turn(wait_s=0)

    for _ in range(6):
        _run(watch, decode)

    assert profiles == []
    assert [h.num_steps for h in watch.state().steps] == [6]
    assert not watch.state().enabled


def test_a_step_that_vllm_fails_is_forgotten_and_the_profiler_closed(open_watch, decode, profiles):
    watch = open_watch(sample_every=2)
    _run(watch, decode)

    watch.begin(None, decode)
    watch.abandon()
    _run(watch, decode)

    assert profiles[0].calls == ["start", "stop"]
    assert watch.state().dropped == {"step_failed": 1}
    assert [h.num_steps for h in watch.state().steps] == [2]


def test_a_step_that_never_ends_is_forgotten_with_the_next(open_watch, decode, profiles):
    watch = open_watch(sample_every=2)
    _run(watch, decode)

    watch.begin(None, decode)
    _run(watch, decode)

    assert profiles[0].calls == ["start", "stop"]
    assert watch.state().dropped == {"unfinished": 1}


class _Observability:
    def __init__(self):
        self.cudagraph_metrics = False


class _VllmConfig:
    def __init__(self):
        self.observability_config = _Observability()


class _Stats:
    runtime_mode = "PIECEWISE"


class _State:
    cudagraph_stats = _Stats


class _Runner:
    def __init__(self):
        self.execute_model_state = _State


class _Worker:
    def __init__(self):
        self.vllm_config = _VllmConfig()
        self.model_runner = _Runner()


def test_the_graph_mode_of_a_recorded_step_is_asked_for_and_only_then(open_watch, decode, tmp_path):
    watch, worker = open_watch(sample_every=2, modes=("full", "piecewise")), _Worker()
    asked = []

    for _ in range(3):
        watch.begin(worker, decode)
        asked.append(worker.vllm_config.observability_config.cudagraph_metrics)
        watch.pause()
        watch.resume()
        watch.end(_Output([1], [2]), has_sampled=True)

    assert asked == [False, True, False]
    assert not worker.vllm_config.observability_config.cudagraph_metrics
    assert [h.graph_mode for h in watch.state().steps] == ["full"]
    (capture,) = _captures(watch, tmp_path)
    assert capture.read_info().graph_mode == "piecewise"


@pytest.mark.parametrize("ending", ["abandon", "direct"])
def test_vllms_setting_is_restored_however_the_step_ends(open_watch, decode, ending):
    watch, worker = open_watch(sample_every=2, modes=("full", "piecewise")), _Worker()
    _run(watch, decode, worker=worker)

    watch.begin(worker, decode)
    if ending == "abandon":
        watch.abandon()
    else:
        watch.end(_Output(), has_sampled=False)

    assert not worker.vllm_config.observability_config.cudagraph_metrics


def test_a_user_who_wants_graph_metrics_keeps_them(open_watch, decode):
    watch, worker = open_watch(sample_every=2, modes=("full", "piecewise")), _Worker()
    worker.vllm_config.observability_config.cudagraph_metrics = True

    for _ in range(2):
        _run(watch, decode, worker=worker)

    assert worker.vllm_config.observability_config.cudagraph_metrics


@pytest.mark.parametrize("fails_at", ["start", "stop", "export"])
def test_a_failing_profiler_costs_samples_only(open_watch, decode, fails_at, tmp_path):
    watch = open_watch(sample_every=2, fails_at={fails_at})

    for _ in range(6):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    state = watch.state()
    assert state.dropped == {"export" if fails_at == "export" else "profiler": 3}
    assert state.enabled
    assert state.num_samples == 0
    assert _captures(watch, tmp_path) == []


def test_a_request_goes_on_after_a_sample_it_lost(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=1000, is_taken=lambda worker: worker == "busy")
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=2))
    watch.outbox.turn(wait_s=0)

    for worker in ("busy", "free", "busy", "free", "free"):
        _run(watch, decode, worker=worker)
        watch.outbox.turn(wait_s=0)

    assert len(spool.captures()) == len(profiles) == 2
    assert watch.state().dropped == {"vllm_profiler": 2}


def test_a_scheduler_output_of_another_kind_ends_the_watch_and_is_said_once(open_watch, decode, caplog):
    watch = open_watch(sample_every=2)
    _run(watch, decode)

    for _ in range(3):
        _run(watch, object())
    _run(watch, decode)

    assert watch.state().dropped == {"hook": 1}
    assert not watch.state().enabled
    assert [h.num_steps for h in watch.state().steps] == [1]
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_an_output_that_cannot_be_counted_costs_the_count_and_not_the_recording(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=2)

    class _Odd:
        sampled_token_ids = 7

    for _ in range(2):
        _run(watch, decode, _Odd())

    (capture,) = _captures(watch, tmp_path)
    assert capture.read_info().batch == Batch(requests=2, prompt_tokens=0, draft_tokens=0, accepted_tokens=0)
    assert watch.state().dropped == {}


def test_a_worker_that_cannot_be_asked_for_its_graph_mode_costs_the_label_and_not_the_recording(
    open_watch, decode, tmp_path
):
    class _Refusing:
        def __getattr__(self, name):
            raise RuntimeError(name)

    watch, worker = open_watch(sample_every=2, modes=("full", "piecewise")), _Worker()
    worker.model_runner.execute_model_state = _Refusing()
    worker.vllm_config.observability_config = _Refusing()

    for _ in range(2):
        _run(watch, decode, worker=worker)

    (capture,) = _captures(watch, tmp_path)
    assert capture.read_info().graph_mode == "full"
    assert watch.state().dropped == {}


def test_a_fault_of_ours_inside_a_bracket_closes_the_profiler(open_watch, decode, profiles):
    watch = open_watch(sample_every=2)
    _run(watch, decode)
    watch.outbox.offer = None

    _run(watch, decode)

    assert profiles[0].calls == ["start", "stop"]
    assert watch.state().dropped == {"hook": 1}


def test_overhead_is_what_recording_took_and_serving_time_starts_with_the_first_request(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=2)
    assert watch.state().serving_ns == 0

    watch.arm()
    for _ in range(2):
        _run(watch, decode)

    (capture,) = _captures(watch, tmp_path)
    info = capture.read_info()
    dilation_ns = info.window_ns - info.plain_window_ns
    assert watch.state().overhead_ns == info.overhead_ns + dilation_ns + watch.outbox.cost_ns
    assert watch.state().serving_ns > 0


def test_accepted_drafts_are_counted_where_the_tokens_are_at_hand(open_watch, schedule, tmp_path):
    """Of a, b and c only a and c had drafts; of a's three two were kept, of c's none."""
    watch = open_watch(sample_every=2)
    verify = schedule({"a": 4, "b": 1, "c": 3}, cached=[("a", 3), ("b", 3), ("c", 3)], drafts={"a": 3, "c": 2})
    output = _Output([7], [1, 2, 3], [4], ids="bac")

    for _ in range(2):
        _run(watch, verify, output)

    (capture,) = _captures(watch, tmp_path)
    assert capture.read_info().batch == Batch(
        requests=3, prompt_tokens=0, output_tokens=5, draft_tokens=5, accepted_tokens=2
    )


def test_drafts_whose_fate_is_still_on_the_device_are_unknown(open_watch, schedule, tmp_path):
    watch = open_watch(sample_every=2)

    for _ in range(2):
        _run(watch, schedule({"a": 4}, cached=[("a", 3)], drafts={"a": 3}), _AsyncOutput())

    (capture,) = _captures(watch, tmp_path)
    assert (capture.read_info().batch.draft_tokens, capture.read_info().batch.accepted_tokens) == (3, None)


def test_what_the_storing_thread_took_before_the_first_request_is_not_taken_from_serving(open_watch):
    watch = open_watch(turn_ns=100)
    watch.outbox.turn(wait_s=0)
    assert watch.state().overhead_ns == 100

    watch.arm()
    assert watch.state().overhead_ns == 0

    watch.outbox.turn(wait_s=0)
    assert watch.state().overhead_ns == 100


def _control(tmp_path, watch, **control):
    Spool(tmp_path / "spool", max_bytes=1, max_captures=1).put_control("server", Control(**control))
    watch.outbox.turn(wait_s=0)
    return watch.state()


def test_recording_is_switched_off_and_on_while_steps_run(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=2)

    state = _control(tmp_path, watch, control_id="1", enabled=False)
    for _ in range(6):
        _run(watch, decode)
    assert (state.enabled, state.off_reason, state.control_id) == (False, "disabled", "1")
    assert profiles == []

    state = _control(tmp_path, watch, control_id="2", enabled=True)
    for _ in range(2):
        _run(watch, decode)
    assert (state.enabled, state.off_reason, state.control_id) == (True, None, "2")
    assert len(profiles) == 1


def test_what_started_switched_off_warms_the_profiler_before_it_records(
    open_watch, decode, profiles, warm_ups, tmp_path
):
    watch = open_watch(sample_every=2, enabled=False)
    watch.start(None)
    watch.close()
    assert warm_ups == []

    _control(tmp_path, watch, control_id="1", enabled=True)
    for _ in range(4):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert [profile.calls for profile in warm_ups] == [["start", "stop"]] * 2
    assert len(profiles) == 2


def test_rate_and_budget_are_changed_and_echoed_and_a_control_read_again_changes_nothing(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=1000)
    before = watch.state()

    for _ in range(2):
        state = _control(tmp_path, watch, control_id="1", sample_every=3, overhead_budget_ratio=0.5)
    for _ in range(6):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert (before.sample_every, before.overhead_budget_ratio, before.control_id) == (1000, 1.0, None)
    assert (state.sample_every, state.overhead_budget_ratio, state.control_id) == (3, 0.5, "1")
    assert [c.read_info().step_index for c in _captures(watch, tmp_path)] == [3, 6]


def test_a_control_out_of_bounds_is_said_and_not_followed(open_watch, tmp_path, caplog):
    watch = open_watch(sample_every=1000)

    state = _control(tmp_path, watch, control_id="1", sample_every=-7)

    assert state.sample_every == 1000
    assert "not followed" in caplog.text


def test_a_watch_that_broke_stays_off_whatever_is_wished(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=2)
    _run(watch, object())

    state = _control(tmp_path, watch, control_id="1", enabled=True)

    assert (state.enabled, state.off_reason) == (False, "hook")


def test_beyond_its_budget_no_step_is_recorded_until_the_debt_is_paid(open_watch, decode, profiles):
    """The clock goes on by 1 µs with each reading; a recording costs some of them, and a millionth is earned."""
    watch = open_watch(sample_every=2, overhead_budget_ratio=0.000001)

    for _ in range(8):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert len(profiles) == 1
    assert watch.state().dropped == {"budget": 3}


def test_a_step_asked_for_is_recorded_beyond_the_budget_and_counts_in_it(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=1000, overhead_budget_ratio=0.000001)
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=3))
    watch.outbox.turn(wait_s=0)

    for _ in range(4):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert len(profiles) == 3
    assert watch.state().overhead_ns > 0


def test_recording_that_cannot_keep_to_its_budget_turns_itself_off_and_says_so_once(
    open_watch, decode, profiles, caplog
):
    watch = open_watch(sample_every=2, overhead_budget_ratio=1e-12, turn_ns=100)

    for _ in range(60):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)
    state = watch.state()

    assert (state.enabled, state.off_reason) == (False, "overhead")
    assert 0 < len(profiles) < 5
    assert sum("cannot be kept to" in record.getMessage() for record in caplog.records) == 1
    assert sum(kind.num_steps for kind in state.steps) == 60 - len(profiles)


def test_what_goes_on_while_nobody_asks_the_server_anything_is_charged_to_nobody(open_watch, decode):
    watch = open_watch(sample_every=2, overhead_budget_ratio=1e-12, turn_ns=100)
    _run(watch, decode)

    for _ in range(60):
        watch.outbox.turn(wait_s=0)

    assert watch.state().enabled
    assert watch.state().overhead_ns > 0


def test_turned_off_for_its_overhead_it_is_turned_on_again_by_hand(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=2, overhead_budget_ratio=1e-12, turn_ns=100)
    for _ in range(60):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)
    num_before = len(profiles)

    state = _control(tmp_path, watch, control_id="1", enabled=True, overhead_budget_ratio=1.0)
    for _ in range(2):
        _run(watch, decode)

    assert state.enabled
    assert len(profiles) == num_before + 1


def test_a_step_that_takes_too_long_is_not_kept_and_its_like_not_recorded(open_watch, decode, profiles, tmp_path):
    """A step takes 1 µs of the clock, as each reading does."""
    watch = open_watch(sample_every=2, max_step_s=0.9e-6)
    watch.begin(None, decode)
    watch.abandon()  # leaves no plain step to know the length by

    for _ in range(5):
        _run(watch, decode)

    assert len(profiles) == 1
    assert watch.state().dropped == {"too_long": 3}
    assert _captures(watch, tmp_path) == []


def test_no_more_steps_are_recorded_for_a_request_than_allowed(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=1000, max_capture_steps=2)
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=200))
    watch.outbox.turn(wait_s=0)

    for _ in range(5):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert len(spool.captures()) == 2


def test_ranks_that_record_take_the_same_steps_whatever_they_cost(open_watch, decode, tmp_path):
    """One rank slows down and picks some of the steps of the other."""
    watches = [
        open_watch(sample_every=4, spool=tmp_path / "fast"),
        open_watch(sample_every=4, spool=tmp_path / "slow", overhead_budget_ratio=1e-5),
    ]

    for _ in range(400):
        for watch in watches:
            _run(watch, decode)
            watch.outbox.turn(wait_s=0)

    fast, slow = (
        {c.read_info().step_index for c in Spool(tmp_path / name, max_bytes=1, max_captures=1).captures()}
        for name in ("fast", "slow")
    )
    assert slow
    assert slow < fast


def test_a_rank_that_only_times_leaves_the_same_steps_out_once_the_rate_was_changed(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=1000, records=False)
    _control(tmp_path, watch, control_id="1", sample_every=5)

    for _ in range(10):
        _run(watch, decode)

    assert [h.num_steps for h in watch.state().steps] == [8]


def test_what_stands_for_vllm_here_has_nothing_that_vllm_has_not(vllm_source):
    theirs = {
        _Output: vllm_source.fields("v1/outputs.py", "ModelRunnerOutput"),
        _AsyncOutput: vllm_source.attributes("v1/worker/gpu/async_utils.py", "AsyncOutput") | {"_output"},
        _Observability: vllm_source.fields("config/observability.py", "ObservabilityConfig"),
        _VllmConfig: vllm_source.fields("config/vllm.py", "VllmConfig"),
        _Runner: vllm_source.attributes("v1/worker/gpu_model_runner.py", "GPUModelRunner"),
        _State: vllm_source.fields("v1/worker/gpu_model_runner.py", "ExecuteModelState"),
        _Stats: vllm_source.fields("compilation/cuda_graph.py", "CUDAGraphStat"),
    }

    ours = {kind: {*vars(kind()), *vars(kind)} for kind in theirs}

    assert {
        kind: {name for name in names if not name.startswith("__") and name != "get_output"} - theirs[kind]
        for kind, names in ours.items()
    } == {kind: set() for kind in theirs}


def _spans(profile):
    return [span.removeprefix("taxbreak.") for span in profile.spans]


def test_a_recording_of_a_server_that_works_ahead_begins_a_step_early_and_ends_as_the_next_one_begins(
    open_watch, decode, schedule, profiles, tmp_path
):
    watch = open_watch(sample_every=3, works_ahead=True)

    for _ in range(3):
        _step(watch, decode, _AsyncOutput([1], [2]))
    _step(watch, schedule({"a": 5}, new=[("a", 5, 0)]), _AsyncOutput([1], ids="a"))
    assert watch.is_recording
    watch.begin(None, decode)
    assert not watch.is_recording

    (capture,) = _captures(watch, tmp_path)
    info = capture.read_info()
    (profile,) = profiles
    assert _spans(profile) == [
        "neighbour:before",
        "engine",
        "step:server.r0.s4",
        "engine",
        "neighbour:after",
    ]
    assert (info.phase, info.num_bracketed, info.step_index) == (Phase.PREFILL, 3, 4)
    # from the reading as it begins to that as the next one does: pause, resume, end and the one between are 4
    assert (info.iteration_ns, info.window_ns) == (4000, 2000)


def test_a_recording_of_a_server_that_waits_for_its_tokens_needs_no_step_before(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=2)

    for _ in range(3):
        _step(watch, decode)

    (capture,) = _captures(watch, tmp_path)
    assert _spans(profiles[0]) == ["step:server.r0.s2", "engine", "neighbour:after"]
    assert capture.read_info().num_bracketed == 2


def test_a_server_that_has_no_work_after_its_sample_leaves_it_without_an_iteration(
    open_watch, decode, profiles, tmp_path
):
    watch = open_watch(sample_every=2)

    for _ in range(2):
        _step(watch, decode)
    watch._now_ns.now_ns += 10**9
    _step(watch, decode)

    (capture,) = _captures(watch, tmp_path)
    assert _spans(profiles[0]) == ["step:server.r0.s2", "engine"]
    assert (capture.read_info().num_bracketed, capture.read_info().iteration_ns) == (1, None)


def test_vllms_profiler_ends_a_recording_that_waits_for_the_next_step_and_keeps_its_sample(
    open_watch, decode, profiles, tmp_path
):
    watch = open_watch(sample_every=2)
    for _ in range(2):
        _step(watch, decode)

    watch.abandon("vllm_profiler")

    assert profiles[0].calls[:2] == ["start", "stop"]
    (capture,) = _captures(watch, tmp_path)
    assert capture.read_info().num_bracketed == 1
    assert watch.state().dropped == {}


def test_vllms_profiler_ends_a_recording_that_has_no_sample_yet(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=2, works_ahead=True)
    for _ in range(2):
        _step(watch, decode)

    watch.abandon("vllm_profiler")

    assert profiles[0].calls == ["start", "stop"]
    assert (_captures(watch, tmp_path), watch.state().dropped) == ([], {"vllm_profiler": 1})


def test_a_request_for_a_phase_waits_for_it_in_one_recording_and_begins_anew_when_that_grows_long(
    open_watch, decode, schedule, profiles, tmp_path
):
    watch = open_watch(sample_every=1000, works_ahead=True)
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=1, phase=Phase.PREFILL))
    watch.outbox.turn(wait_s=0)

    for _ in range(11):
        _step(watch, decode)
    _step(watch, schedule({"a": 5}, new=[("a", 5, 0)]), _Output([1], ids="a"))
    _step(watch, decode)
    watch.outbox.turn(wait_s=0)

    assert [len(_spans(profile)) // 2 for profile in profiles] == [8, 3]
    (capture,) = spool.captures()
    assert (capture.read_info().phase, capture.read_info().num_bracketed) == (Phase.PREFILL, 3)
    assert watch.state().capture_recorded == 1


def test_ranks_that_only_time_leave_out_the_steps_of_a_recording(open_watch, decode):
    recording = open_watch(sample_every=3, works_ahead=True)
    timing = open_watch(sample_every=3, works_ahead=True, records=False)

    for watch in (recording, timing):
        for _ in range(5):
            _step(watch, decode)

    assert [h.num_steps for w in (recording, timing) for h in w.state().steps] == [3, 3]


@pytest.mark.parametrize("is_asked", [False, True])
def test_iterations_of_plain_steps_are_counted_where_the_server_had_work_for_the_next(
    open_watch, decode, is_asked, tmp_path
):
    watch = open_watch(sample_every=1000)
    if is_asked:  # for a phase that does not come
        spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
        spool.put_request("server", CaptureRequest(capture_id="c", steps=1, phase=Phase.MIXED))
        watch.outbox.turn(wait_s=0)

    for _ in range(3):
        _step(watch, decode)
    watch._now_ns.now_ns += 10**9
    _step(watch, decode)

    (histogram,) = watch.state().iterations
    assert (histogram.num_steps, histogram.sum_ns) == (2, 4000)


def test_what_a_server_that_works_ahead_pays_for_a_recording_is_told_by_its_iterations(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=10, works_ahead=True)
    for _ in range(9):
        _step(watch, decode)
        watch._now_ns.now_ns += 50_000  # of waiting for tokens, recorded or not
    before_ns = watch.state().overhead_ns
    for _ in range(3):
        _step(watch, decode, _AsyncOutput([1], [2]))
        watch._now_ns.now_ns += 60_000

    added_ns = watch.state().overhead_ns - before_ns
    assert 20_000 <= added_ns < 40_000
    (capture,) = _captures(watch, tmp_path)
    info = capture.read_info()
    assert info.plain_iteration_ns == 52_000
    assert info.compared_ns == (info.iteration_ns, 52_000)


def test_the_time_for_which_a_step_waits_for_its_grammar_is_not_its_own(open_watch, decode):
    watch = open_watch(sample_every=1000)

    watch.begin(None, decode)
    watch.pause()
    watch._now_ns.now_ns += 10**6
    watch.resume()
    watch.end(_Output([1], [2]), has_sampled=True)

    assert watch.state().steps[0].sum_ns == 2000


_CUDA = SimpleNamespace(device=SimpleNamespace(type="cuda"))


def test_a_device_whose_records_do_not_come_back_ends_recording_at_the_start_for_good(
    open_watch, decode, profiles, tmp_path
):
    watch = open_watch(sample_every=2, device_type="cuda", recorder={"num_device_records": 0})
    watch.start(_CUDA)
    watch.close()

    state = _control(tmp_path, watch, control_id="1", enabled=True)
    for _ in range(6):
        _run(watch, decode, worker=_CUDA)

    assert profiles == []
    assert (state.enabled, state.off_reason) == (False, "no_device_records")
    assert [h.num_steps for h in state.steps] == []
    assert [h.num_steps for h in watch.state().steps] == [6]
    assert "no record of a kernel" in state.notes[0]


def test_a_device_first_started_late_whose_records_do_not_come_back_ends_recording_too(open_watch, decode, profiles):
    watch = open_watch(sample_every=2, recorder={"num_device_records": 0})

    for _ in range(6):
        _run(watch, decode, worker=_CUDA)

    assert profiles == []
    assert (watch.state().off_reason, watch.is_recording, watch.state().dropped) == ("no_device_records", False, {})


def test_sessions_records_and_cupti_are_published(open_watch, decode, tmp_path):
    watch = open_watch(sample_every=2, device_type="cuda", recorder={"cupti_version": 130001})
    before = watch.state()
    watch.start(_CUDA)
    watch.close()

    for _ in range(2):
        _run(watch, decode, worker=_CUDA)
    watch.outbox.turn(wait_s=0)

    state = watch.state()
    assert (before.cupti_attached, before.cupti_version, before.num_sessions) == (False, None, 0)
    assert (state.cupti_attached, state.cupti_version, state.num_sessions) == (True, 130001, 3)
    assert ["CUPTI 13.0" in note for note in state.notes] == [True]


def test_what_is_switched_off_attaches_nothing_and_says_what_switching_it_on_would(
    open_watch, decode, tmp_path, caplog
):
    watch = open_watch(sample_every=2, device_type="cuda", enabled=False)
    watch.start(_CUDA)
    watch.close()

    for _ in range(4):
        _run(watch, decode, worker=_CUDA)

    state = watch.state()
    assert (state.num_sessions, state.cupti_attached) == (0, False)
    assert "its first start takes seconds" in state.notes[0]

    _control(tmp_path, watch, control_id="1", enabled=True)
    assert caplog.text.count("its first start takes seconds") == 1


@pytest.mark.parametrize(("version", "off_reason"), [(130001, "cupti_records"), (130101, None), (None, None)])
def test_a_cupti_that_leaks_records_no_more_than_it_may(
    open_watch, decode, profiles, tmp_path, version, off_reason, caplog
):
    watch = open_watch(sample_every=2, device_type="cuda", recorder={"cupti_version": version})
    watch.start(_CUDA)
    watch.close()
    watch.outbox.num_device_records = cupti.MAX_RECORDS - 1
    watch.outbox.turn(wait_s=0)
    before = watch.state().off_reason
    watch.outbox.num_device_records += 1
    watch.outbox.turn(wait_s=0)

    state = _control(tmp_path, watch, control_id="1", enabled=True)
    for _ in range(2):
        _run(watch, decode, worker=_CUDA)

    assert (before, state.off_reason) == (None, off_reason)
    assert len(profiles) == (off_reason is None)
    assert caplog.text.count("recorded all it may") == (off_reason is not None)


def test_a_step_whose_recording_would_stall_the_server_is_recorded_without_shapes_then_not_at_all(
    open_watch, decode, profiles, caplog
):
    stop_ns = {Detail.SHAPES: 21_000_000, Detail.TIMES: 20_500_000}
    watch = open_watch(sample_every=2, recorder={"stop_ns": stop_ns.__getitem__})

    for _ in range(10):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert [profile.detail for profile in profiles] == [Detail.SHAPES, Detail.TIMES]
    assert watch.state().dropped == {"stall": 3}
    assert caplog.text.count("(stall)") == 1
    assert "would take 20 ms, more than TAXBREAK_MAX_STALL_MS=20;" in caplog.text


def test_a_stop_within_the_bound_changes_nothing(open_watch, decode, profiles):
    watch = open_watch(sample_every=2, max_stall_ms=21, recorder={"stop_ns": lambda detail: 21_000_000})

    for _ in range(6):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert [profile.detail for profile in profiles] == [Detail.SHAPES] * 3
    assert watch.state().dropped == {}


def test_a_server_that_works_ahead_stops_two_steps_at_once(open_watch, decode, schedule, profiles, tmp_path):
    """A request for a phase had nine steps recorded: a recording of two is a fifth of that, within the bound."""
    watch = open_watch(works_ahead=True, sample_every=1000, recorder={"stop_ns": lambda detail: 80_000_000})
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=1, phase=Phase.PREFILL))
    watch.outbox.turn(wait_s=0)

    for _ in range(8):
        _step(watch, decode)
    for _ in range(2):
        _step(watch, schedule({"a": 5}, new=[("a", 5, 0)]))
    watch.outbox.turn(wait_s=0)
    spool.put_request("server", CaptureRequest(capture_id="d", steps=1, phase=Phase.DECODE))
    watch.outbox.turn(wait_s=0)
    _step(watch, decode)

    assert [profile.detail for profile in profiles] == [Detail.SHAPES, Detail.SHAPES]


def test_a_request_whose_steps_would_stall_the_server_says_so_and_records_none(open_watch, decode, profiles, tmp_path):
    watch = open_watch(sample_every=1000, recorder={"stop_ns": lambda detail: 48_000_000})
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=4))
    watch.outbox.turn(wait_s=0)

    for _ in range(200):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    state = watch.state()
    assert [profile.detail for profile in profiles] == [Detail.SHAPES, Detail.TIMES]
    assert (state.capture_id, state.capture_recorded, state.dropped) == ("c", 2, {"stall": 1})
    assert state.capture_refusal == (
        "stopping the recording would take 48 ms, more than TAXBREAK_MAX_STALL_MS=20: ask with a larger max_stall_ms"
    )

    spool.put_request("server", CaptureRequest(capture_id="d", steps=1, stacks=True))
    watch.outbox.turn(wait_s=0)
    _run(watch, decode)
    assert (watch.state().capture_id, watch.state().capture_refusal) == ("d", None)


@pytest.mark.parametrize(("max_stall_ms", "num_recorded"), [(None, 1), (47, 1), (48, 3)])
def test_a_request_with_stacks_says_how_long_a_stop_may_take_to_have_all_its_steps(
    open_watch, decode, profiles, tmp_path, max_stall_ms, num_recorded
):
    watch = open_watch(sample_every=1000, recorder={"stop_ns": lambda detail: 48_000_000})
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=3, stacks=True, max_stall_ms=max_stall_ms))
    watch.outbox.turn(wait_s=0)

    for _ in range(20):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)

    assert [profile.detail for profile in profiles] == [Detail.STACKS] * num_recorded
    assert (watch.state().capture_refusal is None) == (num_recorded == 3)


@pytest.mark.parametrize(
    ("settings", "has_store", "detail"),
    [
        ({}, False, Detail.SHAPES),
        ({"replay": False}, True, Detail.SHAPES),
        ({"replay": False}, False, Detail.TIMES),
    ],
)
def test_shapes_are_recorded_where_baselines_are_looked_up_by_them_and_always_for_a_request(
    open_watch, decode, profiles, tmp_path, settings, has_store, detail
):
    if has_store:
        (tmp_path / "spool").mkdir(mode=0o700)
        (tmp_path / "spool" / "baselines.sqlite3").touch()
    watch = open_watch(sample_every=2, **settings)
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)
    for _ in range(2):
        _run(watch, decode)
        watch.outbox.turn(wait_s=0)
    spool.put_request("server", CaptureRequest(capture_id="c", steps=1))
    watch.outbox.turn(wait_s=0)

    _run(watch, decode)

    assert [profile.detail for profile in profiles] == [detail, Detail.SHAPES]


def test_the_cost_of_an_op_is_that_of_the_detail_it_was_recorded_with(open_watch, decode, tmp_path):
    op_ns = iter([1700, 1200, 1500, 1200])
    watch = open_watch(sample_every=2, replay=False, recorder={"time_op": lambda: next(op_ns)})

    for _ in range(2):
        _run(watch, decode)

    (capture,) = _captures(watch, tmp_path)
    assert capture.read_info().op_cost_ns == 300


def test_what_a_stop_took_is_that_of_the_kind_that_was_picked_whatever_was_recorded_after_it(
    open_watch, decode, schedule, profiles
):
    watch = open_watch(
        works_ahead=True, sample_every=2, modes=("full", "none"), recorder={"stop_ns": lambda detail: 50_000_000}
    )
    prefill = schedule({"a": 5}, new=[("a", 5, 0)])

    for step in (prefill, prefill, decode, decode, prefill, prefill):
        _step(watch, step)
        if not watch.is_recording:
            watch.outbox.turn(wait_s=0)

    assert [profile.detail for profile in profiles] == [Detail.SHAPES, Detail.TIMES]


def test_the_wait_for_a_cpu_is_that_of_the_thread_with_the_first_request(open_watch, monkeypatch):
    monkeypatch.setattr("taxbreak_vllm.serving.watch.RunQueueWait", lambda tid: SimpleNamespace(ratio=lambda: tid))
    watch = open_watch()
    before = watch.state().runqueue_wait_ratio

    thread = threading.Thread(target=watch.arm)
    thread.start()
    thread.join()

    assert before is None
    assert watch.state().runqueue_wait_ratio == thread.native_id
