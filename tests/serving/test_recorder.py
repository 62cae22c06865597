import gc
import json
import logging
import weakref
from types import SimpleNamespace

import pytest

from taxbreak_vllm.serving.drops import Drops
from taxbreak_vllm.serving.recorder import Recorder, TorchProfile


@pytest.fixture
def drops():
    return Drops()


def test_a_bracket_gives_the_profile_that_was_open(drops, open_recorder, profiles):
    recorder = open_recorder(drops)

    assert recorder.start(None, "step-1", stacks=True)
    profile = recorder.stop()

    assert profile is profiles[0]
    assert (profile.step_id, profile.stacks, profile.calls) == ("step-1", True, ["start", "stop"])
    assert drops.counts() == {}


def test_nothing_is_started_while_another_profiler_runs(drops, open_recorder, profiles):
    recorder = open_recorder(drops, is_taken=lambda worker: worker == "busy")

    assert not recorder.start("busy", "step-1", stacks=False)
    assert recorder.start("free", "step-2", stacks=False)

    assert drops.counts() == {"vllm_profiler": 1}
    assert [profile.step_id for profile in profiles] == ["step-2"]


def test_a_process_that_a_profiler_started_is_left_to_it_and_the_log_says_how_that_is_known(
    drops, open_recorder, profiles, warm_ups, caplog
):
    recorder = open_recorder(drops, injected="CUDA_INJECTION64_PATH")

    recorder.warm(None)
    assert not recorder.start(None, "step-1", stacks=False)

    assert (profiles, warm_ups) == ([], [])
    assert drops.counts() == {"vllm_profiler": 1}
    assert "CUDA_INJECTION64_PATH" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu"])
def test_what_is_recorded_is_the_device_that_the_worker_computes_on(drops, open_recorder, profiles, warm_ups, device):
    worker, recorder = SimpleNamespace(device=SimpleNamespace(type=device)), open_recorder(drops)

    recorder.warm(worker)
    recorder.start(worker, "step-1", stacks=False)

    assert [profile.device_type for profile in (*warm_ups, *profiles)] == [device, device]


@pytest.mark.parametrize(
    ("device", "can", "asked"),
    [
        ("cpu", {"CPU", "CUDA", "XPU"}, {"CPU"}),
        ("cuda", {"CPU", "CUDA", "XPU"}, {"CPU", "CUDA"}),
        ("xpu", {"CPU", "CUDA", "XPU"}, {"CPU", "XPU"}),
        ("xpu", {"CPU"}, {"CPU"}),
        ("npu", {"CPU", "PrivateUse1"}, {"CPU"}),
    ],
)
def test_torch_is_asked_for_that_device_where_it_can(monkeypatch, device, can, asked):
    profiler = pytest.importorskip("torch.profiler", exc_type=ImportError)
    given = []
    activity = profiler.ProfilerActivity
    monkeypatch.setattr(profiler, "supported_activities", lambda: {getattr(activity, name) for name in can})
    monkeypatch.setattr(profiler, "profile", lambda **options: given.append(options) or SimpleNamespace())

    TorchProfile("step-1", stacks=False, device_type=device)

    assert given[0]["activities"] == {getattr(activity, name) for name in asked}


def test_a_profiler_that_does_not_start_is_closed_and_counted(drops, open_recorder, profiles):
    recorder = open_recorder(drops, fails_at={"start"})

    assert not recorder.start(None, "step-1", stacks=False)

    assert profiles[0].calls == ["start", "stop"]
    assert drops.counts() == {"profiler": 1}
    assert recorder.stop() is None


def test_a_profiler_that_does_not_stop_is_counted(drops, open_recorder):
    recorder = open_recorder(drops, fails_at={"stop"})
    recorder.start(None, "step-1", stacks=False)

    assert recorder.stop() is None
    assert drops.counts() == {"profiler": 1}


def test_a_probe_that_raises_is_counted_and_nothing_is_started(drops, open_recorder, profiles):
    def is_taken(worker):
        raise AttributeError("_profiler_type")

    assert not open_recorder(drops, is_taken=is_taken).start(None, "step-1", stacks=False)

    assert drops.counts() == {"profiler": 1}
    assert profiles == []


def test_a_discarded_bracket_is_closed_and_counted_by_its_reason(drops, open_recorder, profiles):
    recorder = open_recorder(drops)
    recorder.discard("nothing is open")
    recorder.start(None, "step-1", stacks=False)

    recorder.discard("step_failed")

    assert profiles[0].calls == ["start", "stop"]
    assert drops.counts() == {"step_failed": 1}


def test_each_reason_is_logged_once(drops, caplog):
    with caplog.at_level(logging.WARNING, "vllm.taxbreak"):
        for reason in ("spool", "spool", "export"):
            drops.add(reason, "why")

    assert [record.args[0] for record in caplog.records] == ["spool", "export"]
    assert drops.counts() == {"spool": 2, "export": 1}


class _Worker:
    def __init__(self):
        self.profiler = None


def test_a_real_profile_holds_the_window_as_an_annotation(drops, tmp_path):
    torch = pytest.importorskip("torch")
    recorder = Recorder(drops)

    assert recorder.start(_Worker(), "taxbreak.step:step-7", stacks=False)
    torch.ones(3) + 1
    profile = recorder.stop()
    profile.export(tmp_path / "trace.json")

    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    (window,) = [event for event in events if event["name"] == "taxbreak.step:step-7"]
    (add,) = [event for event in events if event["name"] == "aten::add"]
    assert window["cat"] == "user_annotation"
    assert window["ts"] <= add["ts"] <= add["ts"] + add["dur"] <= window["ts"] + window["dur"]
    assert add["args"]["Input Dims"][0] == [3]
    assert drops.counts() == {}


def test_warming_learns_what_the_profiler_adds_to_an_op(drops, warm_ups, open_recorder):
    recorded_and_plain_ns = iter([1700, 1200])
    recorder = open_recorder(drops, time_op=lambda: next(recorded_and_plain_ns))

    recorder.warm(None)
    recorder.warm(None)

    assert recorder.op_cost_ns == 500
    assert [profile.calls for profile in warm_ups] == [["start", "stop"]]
    assert recorder.stop() is None


def test_a_calibration_that_fails_leaves_the_cost_unknown_and_the_profiler_closed(drops, warm_ups, open_recorder):
    recorder = open_recorder(drops, time_op=lambda: 1 // 0)

    recorder.warm(None)

    assert recorder.op_cost_ns is None
    assert warm_ups[0].calls == ["start", "stop"]
    assert drops.counts() == {}


def test_warming_waits_for_a_profiler_of_somebody_else(drops, warm_ups, open_recorder):
    is_taken = iter([True, False])
    recorder = open_recorder(drops, is_taken=lambda worker: next(is_taken))

    recorder.warm(None)
    assert warm_ups == []

    recorder.warm(None)
    assert len(warm_ups) == 1
    assert drops.counts() == {}


@pytest.mark.parametrize("is_exported", [True, False])
def test_a_profile_goes_with_its_last_user_and_waits_for_no_collector(tmp_path, is_exported):
    torch = pytest.importorskip("torch")
    profile = TorchProfile("step", stacks=False)
    profile.start()
    torch.ones(8).sum()
    profile.stop()
    theirs = weakref.ref(profile._profile)

    gc.disable()
    try:
        if is_exported:
            profile.export(tmp_path / "trace.json")
        del profile

        assert theirs() is None
    finally:
        gc.enable()
