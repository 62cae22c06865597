"""`taxbreak replay` as a whole: a spool in, a store and an account out."""

import gzip
import json
import threading
from dataclasses import replace
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="replay needs torch")


from taxbreak_vllm.baselines.store import Baselines  # noqa: E402
from taxbreak_vllm.model.baseline import Outcome  # noqa: E402
from taxbreak_vllm.model.breakdown import Tier  # noqa: E402
from taxbreak_vllm.model.errors import BaselineError, SpoolError  # noqa: E402
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo  # noqa: E402
from taxbreak_vllm.replay.command import replay_paths  # noqa: E402
from taxbreak_vllm.replay.runner import Limits, Pace, run  # noqa: E402
from taxbreak_vllm.replay.task import Options  # noqa: E402
from taxbreak_vllm.service.processes.replayer import Replayer  # noqa: E402
from taxbreak_vllm.spool.spool import Spool  # noqa: E402
from taxbreak_vllm.taxes.analyze import analyze  # noqa: E402 - after the check for torch

pytestmark = pytest.mark.timeout(300)

OPTIONS = Options(modules=("slow_ops",), runs=10)


@pytest.fixture
def spool(slow_ops, tmp_path):
    """A spool of two captures of one server: two matrix products, a draw, and an op that fails."""
    x = torch.ones(32, 32)

    def step():
        torch.mm(x, x)
        torch.bmm(x[None], x[None])
        x.exponential_()
        slow_ops.busy(1)

    trace = slow_ops.record(tmp_path / "trace.json", [("s1", step)])
    spool = Spool(tmp_path / "spool", max_bytes=10**8, max_captures=10)
    for number in range(2):
        put(spool, trace, number)
    return spool


def put(spool, trace, number, **told):
    info = StepInfo(
        step_id=f"s{number}",
        step_index=number,
        server=Server(**{"server_id": "server", "dtype": "float32", "device_type": "cpu", **told}),
        phase=Phase.DECODE,
        batch=Batch(),
        graph_mode=GraphMode.NONE,
        started_unix_ns=number,
        window_ns=100,
    )
    spool.put(info, lambda path: path.write_bytes(gzip.compress(trace.read_bytes())) and None)


@pytest.fixture
def replay(children, tmp_path):
    """Replay into one store, with the child that all tests share."""

    def replay(*paths, **told):
        told = {"limits": Limits(), "options": OPTIONS} | told
        return replay_paths(paths, tmp_path / "store.sqlite3", open_child=lambda _: children(), **told)

    return replay


def test_a_whole_spool_is_replayed_and_what_was_not_is_named(replay, spool):
    account = replay(spool.root)

    assert account.signatures == sum(account.outcomes.values())
    assert account.outcomes == {"measured": account.signatures - 1, "denied": 1}
    assert account.left == 0
    assert account.environment.device_type == "cpu"
    (denied,) = account.trouble
    assert (denied.op, denied.outcome) == ("aten::exponential_", Outcome.DENIED)


def test_a_capture_and_a_trace_say_the_same(replay, spool):
    paths = [spool.captures()[0].path, spool.root.parent / "trace.json"]

    first, second = (replay(path) for path in paths)

    assert first == second


def test_the_analysis_then_rests_on_it(replay, spool, tmp_path):
    capture = spool.captures()[0].path
    before = analyze(capture)
    replay(capture)

    with Baselines(tmp_path / "store.sqlite3") as store:
        after = analyze(capture, baselines=store)

    assert set(before.coverage.replay) == {Tier.TRACE}
    assert before.total.taxes.delta_ct_ns is None
    assert after.coverage.replay[Tier.REPLAYED] > 0.5
    assert after.total.taxes.delta_ct_ns is not None
    assert after.coverage.denied_ns > 0


def test_baselines_of_elsewhere_are_not_used_and_that_is_said(replay, spool, tmp_path):
    capture = spool.captures()[0].path
    replay(capture)
    with Baselines(tmp_path / "store.sqlite3") as store, Baselines(tmp_path / "other.sqlite3") as other:
        (environment,) = store.environments()
        other.put(replace(environment, device_type="cuda", device_name="H100"), store.entries(environment))

        breakdown = analyze(capture, baselines=other)

    assert set(breakdown.coverage.replay) == {Tier.TRACE}
    assert any("holds no baselines" in note for note in breakdown.notes)


def test_traces_made_elsewhere_are_refused_and_nothing_is_stored(replay, spool, tmp_path):
    tree = json.loads((tmp_path / "trace.json").read_text()) | {"deviceProperties": [{"name": "H100"}]}
    (tmp_path / "gpu.json").write_text(json.dumps(tree))

    with pytest.raises(BaselineError, match=r"device_name H100; here is cpu .*: replay them where they were made"):
        replay(tmp_path / "gpu.json")

    with Baselines(tmp_path / "store.sqlite3") as store:
        assert store.environments() == []


def test_what_failed_is_tried_again_only_when_told(replay, spool, tmp_path):
    replay(spool.root)
    with Baselines(tmp_path / "store.sqlite3") as store:
        (environment,) = store.environments()
        good, *_ = [entry for entry in store.entries(environment) if entry.outcome is Outcome.MEASURED]
        store.put(environment, [replace(good, outcome=Outcome.TIMED_OUT, reason="slow that day", dispatch=None)])

    left_alone, tried_again = replay(spool.root), replay(spool.root, retry=True)

    assert left_alone.outcomes["timed_out"] == 1
    assert "timed_out" not in tried_again.outcomes


def test_a_folder_that_is_neither_is_named(replay, tmp_path):
    with pytest.raises(SpoolError, match="neither a capture nor a spool"):
        replay(tmp_path)


def test_in_the_background_captures_of_another_torch_hold_up_nobody(spool, children, tmp_path, caplog):
    put(spool, tmp_path / "trace.json", 7, server_id="old", torch="1.0")
    replay = partial(run, open_child=lambda _: children())
    with Baselines(tmp_path / "store.sqlite3") as store:
        Replayer(spool, store, OPTIONS, Pace(1.0), replay=replay).turn(threading.Event())

        (environment,) = store.environments()

    assert environment.torch == torch.__version__
    assert "torch 1.0" in caplog.text


def test_a_recording_without_shapes_rests_on_nothing_replayed_and_says_so(replay, spool, tmp_path):
    """The same steps: what stands under their shapes in the store is not found, and no tax of a library is made 0."""
    capture = spool.captures()[0].path
    replay(capture)
    (trace,) = capture.glob("trace.json*")
    tree = json.loads(gzip.decompress(trace.read_bytes()))
    for event in tree["traceEvents"]:
        for name in ("Input Dims", "Input type", "Input Strides", "Concrete Inputs"):
            event.get("args", {}).pop(name, None)
    del tree["record_shapes"]
    trace.write_bytes(gzip.compress(json.dumps(tree).encode()))

    with Baselines(tmp_path / "store.sqlite3") as store:
        breakdown = analyze(capture, baselines=store)

    assert set(breakdown.coverage.replay) == {Tier.TRACE}
    assert breakdown.total.taxes.delta_ct_ns is None
    assert any("recorded without shapes" in note for note in breakdown.notes)
