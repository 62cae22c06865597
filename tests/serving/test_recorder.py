import gc
import json
import logging
import os
import weakref
from types import SimpleNamespace

import pytest

from taxbreak_vllm.model import cupti
from taxbreak_vllm.serving.drops import Drops
from taxbreak_vllm.serving.recorder import FIRST_START, Recorder
from taxbreak_vllm.serving.sampling.stalls import Detail
from taxbreak_vllm.serving.torch_profile import DeviceUnseenError, TorchProfile


@pytest.fixture
def drops():
    return Drops()


def test_a_bracket_gives_the_profile_that_was_open(drops, open_recorder, profiles):
    recorder = open_recorder(drops)

    assert recorder.start(None, "step-1", detail=Detail.STACKS)
    profile = recorder.stop()

    assert profile is profiles[0]
    assert (profile.step_id, profile.detail, profile.calls) == ("step-1", Detail.STACKS, ["start", "stop"])
    assert drops.counts() == {}


def test_nothing_is_started_while_another_profiler_runs(drops, open_recorder, profiles):
    recorder = open_recorder(drops, is_taken=lambda worker: worker == "busy")

    assert not recorder.start("busy", "step-1", detail=Detail.SHAPES)
    assert recorder.start("free", "step-2", detail=Detail.SHAPES)

    assert drops.counts() == {"vllm_profiler": 1}
    assert [profile.step_id for profile in profiles] == ["step-2"]


def test_a_process_that_a_profiler_started_is_left_to_it_and_the_log_says_how_that_is_known(
    drops, open_recorder, profiles, warm_ups, caplog
):
    recorder = open_recorder(drops, injected="CUDA_INJECTION64_PATH")

    recorder.warm(None)
    assert not recorder.start(None, "step-1", detail=Detail.SHAPES)

    assert (profiles, warm_ups) == ([], [])
    assert drops.counts() == {"vllm_profiler": 1}
    assert "CUDA_INJECTION64_PATH" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu"])
def test_what_is_recorded_is_the_device_that_the_worker_computes_on(drops, open_recorder, profiles, warm_ups, device):
    worker, recorder = SimpleNamespace(device=SimpleNamespace(type=device)), open_recorder(drops)

    recorder.warm(worker)
    recorder.start(worker, "step-1", detail=Detail.SHAPES)

    assert {profile.device_type for profile in (*warm_ups, *profiles)} == {device}


@pytest.mark.parametrize(
    ("device", "can", "asked"),
    [
        ("cpu", {"CPU", "CUDA", "XPU"}, {"CPU"}),
        ("cuda", {"CPU", "CUDA", "XPU"}, {"CPU", "CUDA"}),
        ("xpu", {"CPU", "CUDA", "XPU"}, {"CPU", "XPU"}),
        ("npu", {"CPU", "PrivateUse1"}, {"CPU"}),
    ],
)
def test_torch_is_asked_for_that_device_where_it_can(monkeypatch, device, can, asked):
    profiler = pytest.importorskip("torch.profiler", exc_type=ImportError)
    given = []
    activity = profiler.ProfilerActivity
    monkeypatch.setattr(profiler, "supported_activities", lambda: {getattr(activity, name) for name in can})
    monkeypatch.setattr(profiler, "profile", lambda **options: given.append(options) or SimpleNamespace())

    TorchProfile("step-1", device_type=device)

    assert given[0]["activities"] == {getattr(activity, name) for name in asked}


@pytest.mark.parametrize(
    ("device", "offers", "asked"),
    [
        ("cuda", {"trace_only", "enable_cuda_sync_events"}, {"trace_only", "enable_cuda_sync_events"}),
        ("cuda", {"enable_cuda_sync_events"}, {"enable_cuda_sync_events"}),
        ("cuda", set(), None),
        ("cpu", {"trace_only", "enable_cuda_sync_events"}, {"trace_only"}),
        ("xpu", {"enable_cuda_sync_events"}, None),
    ],
)
def test_torch_is_asked_who_waits_for_whom_where_it_offers_that(monkeypatch, device, offers, asked):
    profiler = pytest.importorskip("torch.profiler", exc_type=ImportError)
    options = pytest.importorskip("torch._C._profiler")
    given = []

    def config(**wanted):
        if not wanted.keys() <= offers:
            raise TypeError("incompatible constructor arguments")
        return wanted

    monkeypatch.setattr(profiler, "supported_activities", lambda: set(profiler.ProfilerActivity.__members__.values()))
    monkeypatch.setattr(profiler, "profile", lambda **options: given.append(options) or SimpleNamespace())
    monkeypatch.setattr(options, "_ExperimentalConfig", config)
    monkeypatch.setattr("torch.version.hip", None)

    TorchProfile("step-1", device_type=device)

    config = given[0]["experimental_config"]
    assert (config and set(config)) == asked


def test_this_torch_offers_to_record_who_waits_for_whom():
    options = pytest.importorskip("torch._C._profiler")

    assert options._ExperimentalConfig(enable_cuda_sync_events=True) is not None


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_a_device_that_this_torch_cannot_record_is_never_profiled_without(device):
    profiler = pytest.importorskip("torch.profiler", exc_type=ImportError)
    if getattr(profiler.ProfilerActivity, device.upper()) in profiler.supported_activities():
        pytest.skip(f"this torch records {device}")

    with pytest.raises(DeviceUnseenError, match=device.upper()):
        TorchProfile("step-1", device_type=device)


def _on(device):
    return SimpleNamespace(device=SimpleNamespace(type=device))


def test_a_kernel_that_leaves_its_record_lets_a_device_be_recorded(drops, open_recorder, warm_ups):
    recorder = open_recorder(drops)

    assert recorder.warm(_on("cuda"))
    assert recorder.warm(_on("cuda"))

    assert [profile.calls for profile in warm_ups] == [["start", "kernel", "stop"]] * 2
    assert recorder.notes("cuda") == ()


def test_a_kernel_that_leaves_no_record_ends_recording_with_what_kineto_said(drops, open_recorder, caplog, capfd):
    def time_op():
        os.write(2, b"INFO:1 x.cpp:1] chatter\nERROR:2026-01-01 1:1 Cupti.cpp:7] CUPTI_ERROR_NOT_INITIALIZED\n")
        return 0

    recorder = open_recorder(drops, num_device_records=0, time_op=time_op)

    assert not recorder.warm(_on("cuda"))
    assert not recorder.warm(_on("cuda"))

    assert "one ran and left none" in caplog.text
    assert "Kineto says: CUPTI_ERROR_NOT_INITIALIZED" in caplog.text
    assert "chatter" not in caplog.text
    assert "one ran and left none" in recorder.notes("cuda")[0]
    assert capfd.readouterr().err.count("ERROR:") == 1  # which stays where Kineto wrote it


def test_a_profiler_that_does_not_start_on_a_device_ends_recording_and_on_the_cpu_does_not(drops, open_recorder):
    assert not open_recorder(drops, fails_at={"start"}).warm(_on("xpu"))
    assert open_recorder(drops, fails_at={"start"}).warm(_on("cpu"))


def test_a_cost_per_op_that_cannot_be_measured_leaves_a_device_recorded(drops, open_recorder):
    recorder = open_recorder(drops, time_op=lambda: 1 // 0)

    assert recorder.warm(_on("cuda"))
    assert recorder.op_cost_ns(Detail.SHAPES) is None


def test_cupti_is_attached_from_the_first_start_on_and_sessions_are_counted(drops, open_recorder):
    recorder = open_recorder(drops, cupti_version=130101)
    before = (recorder.is_cupti_attached, recorder.num_sessions, recorder.notes("cuda"))

    recorder.warm(_on("cuda"))
    recorder.start(_on("cuda"), "step-1", detail=Detail.TIMES)

    assert before == (False, 0, (FIRST_START,))
    assert (recorder.is_cupti_attached, recorder.num_sessions, recorder.notes("cuda")) == (True, 3, ())
    assert recorder.cupti_version == 130101


@pytest.mark.parametrize("device", ["cpu", "xpu"])
def test_no_cupti_is_attached_where_none_is_used(drops, open_recorder, device):
    recorder = open_recorder(drops, cupti_version=130001)

    recorder.warm(_on(device))

    assert (recorder.is_cupti_attached, recorder.cupti_version, recorder.notes(device)) == (False, None, ())


def test_a_cupti_that_loses_records_is_named_once_with_the_remedy(drops, open_recorder, caplog):
    recorder = open_recorder(drops, cupti_version=130001)

    recorder.warm(_on("cuda"))
    recorder.warm(_on("cuda"))

    assert caplog.text.count("nvidia-cuda-cupti of CUDA 13.1 Update 1") == 1
    assert recorder.notes("cuda") == (cupti.faults(130001),)


@pytest.mark.parametrize(("theirs", "then"), [(None, "0"), ("1", "1")])
def test_cupti_is_not_taken_away_between_recordings_unless_the_environment_says_so(
    drops, open_recorder, monkeypatch, theirs, then
):
    monkeypatch.setenv("TEARDOWN_CUPTI", "0")  # so that what is set below is undone
    monkeypatch.delenv("TEARDOWN_CUPTI")
    if theirs is not None:
        monkeypatch.setenv("TEARDOWN_CUPTI", theirs)

    open_recorder(drops).warm(_on("cuda"))

    assert os.environ["TEARDOWN_CUPTI"] == then


@pytest.mark.parametrize(("kind", "level"), [("cuda", None), ("xpu", None), ("cpu", "6")])
def test_kinetos_errors_are_heard_where_there_is_a_device(drops, open_recorder, monkeypatch, kind, level):
    """Its level of errors is 4, and 6 silences them with the probes; torch 2.13 sets 4 where nothing is said."""
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)

    open_recorder(drops).warm(_on(kind))

    assert os.environ.get("KINETO_LOG_LEVEL") == level


def test_a_profiler_that_does_not_start_is_closed_and_counted(drops, open_recorder, profiles):
    recorder = open_recorder(drops, fails_at={"start"})

    assert not recorder.start(None, "step-1", detail=Detail.SHAPES)

    assert profiles[0].calls == ["start", "stop"]
    assert drops.counts() == {"profiler": 1}
    assert recorder.stop() is None


def test_a_profiler_that_does_not_stop_is_counted(drops, open_recorder):
    recorder = open_recorder(drops, fails_at={"stop"})
    recorder.start(None, "step-1", detail=Detail.SHAPES)

    assert recorder.stop() is None
    assert drops.counts() == {"profiler": 1}


def test_a_probe_that_raises_is_counted_and_nothing_is_started(drops, open_recorder, profiles):
    def is_taken(worker):
        raise AttributeError("_profiler_type")

    assert not open_recorder(drops, is_taken=is_taken).start(None, "step-1", detail=Detail.SHAPES)

    assert drops.counts() == {"profiler": 1}
    assert profiles == []


def test_a_discarded_bracket_is_closed_and_counted_by_its_reason(drops, open_recorder, profiles):
    recorder = open_recorder(drops)
    recorder.discard("nothing is open")
    recorder.start(None, "step-1", detail=Detail.SHAPES)

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

    assert recorder.start(_Worker(), "taxbreak.step:step-7", detail=Detail.SHAPES)
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
    recorded_and_plain_ns = iter([1700, 1200, 1500, 1200])
    recorder = open_recorder(drops, time_op=lambda: next(recorded_and_plain_ns))

    recorder.warm(None)
    recorder.warm(None)

    assert [recorder.op_cost_ns(detail) for detail in Detail] == [300, 500, 500]
    assert [(profile.detail, profile.calls) for profile in warm_ups] == [
        (Detail.SHAPES, ["start", "stop"]),
        (Detail.TIMES, ["start", "stop"]),
    ]
    assert recorder.stop() is None


def test_a_calibration_that_fails_leaves_the_cost_unknown_and_the_profiler_closed(drops, warm_ups, open_recorder):
    recorder = open_recorder(drops, time_op=lambda: 1 // 0)

    recorder.warm(None)

    assert recorder.op_cost_ns(Detail.SHAPES) is None
    assert warm_ups[0].calls == ["start", "stop"]
    assert drops.counts() == {}


def test_warming_waits_for_a_profiler_of_somebody_else(drops, warm_ups, open_recorder):
    is_taken = iter([True, False])
    recorder = open_recorder(drops, is_taken=lambda worker: next(is_taken))

    recorder.warm(None)
    assert warm_ups == []

    recorder.warm(None)
    assert len(warm_ups) == 2
    assert drops.counts() == {}


@pytest.mark.parametrize("detail", list(Detail))
def test_a_real_recording_holds_every_op_and_as_much_of_it_as_was_asked_for(tmp_path, detail):
    torch = pytest.importorskip("torch")
    profile = TorchProfile("step", detail=detail)
    profile.start()
    torch.ones(3) + 1
    profile.stop()
    profile.export(tmp_path / "trace.json")

    trace = json.loads((tmp_path / "trace.json").read_text())
    (add,) = [event for event in trace["traceEvents"] if event["name"] == "aten::add"]
    assert ("Input Dims" in add["args"]) == (detail is not Detail.TIMES)
    assert ("record_shapes" in trace) == (detail is not Detail.TIMES)
    assert any(event.get("cat") == "python_function" for event in trace["traceEvents"]) == (detail is Detail.STACKS)
    assert profile.stop_ns > 0


def test_records_of_a_device_are_told_from_those_of_the_host(tmp_path):
    torch = pytest.importorskip("torch")
    profile = TorchProfile("warm-up", is_read=True)
    profile.start()
    torch.ones(3) + 1
    profile.stop()

    assert profile.num_device_records() == 0

    types = [torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.XPU]
    events = [SimpleNamespace(device_type=lambda kind=kind: kind) for kind in types]
    profile._profile.profiler.kineto_results = SimpleNamespace(events=lambda: events)
    assert profile.num_device_records() == 2


@pytest.mark.parametrize("is_exported", [True, False])
def test_a_profile_goes_with_its_last_user_and_waits_for_no_collector(tmp_path, is_exported):
    torch = pytest.importorskip("torch")
    profile = TorchProfile("step")
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
