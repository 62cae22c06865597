"""What is read off a replay: kernels found again in four ways, and each launch's times under the run it was of."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="replay needs torch")

from taxbreak_vllm.model.baseline import Match, Outcome  # noqa: E402 - after the check for torch
from taxbreak_vllm.replay.inputs import Size  # noqa: E402
from taxbreak_vllm.replay.measure import PACE, WINDOW, Gauge, _entry, _seen, _turns, find, measure  # noqa: E402
from taxbreak_vllm.replay.task import Options, Task  # noqa: E402
from taxbreak_vllm.trace.calls import Call, Input, Kernel, signature  # noqa: E402
from taxbreak_vllm.trace.read.kineto import read_events  # noqa: E402

GEMM = Kernel("sm90_gemm_128x64", (8, 4, 1), (128, 1, 1), 49152, 168)
SPLIT = Kernel("sm90_splitK_reduce", (32, 1, 1), (256, 1, 1), 0, 32)
COPY = Kernel()
FLOATS = Input("float", (64, 64), (64, 1))


def renamed(kernel, name):
    return kernel.named(name)


def test_a_kernel_is_found_by_its_launch_configuration_before_its_name():
    moved = Kernel(GEMM.name, (1, 1, 1), (32, 1, 1), 0, 10)

    assert find(GEMM, [SPLIT, moved, renamed(GEMM, "jit_42")]) == (Match.CONFIGURATION, renamed(GEMM, "jit_42"))


def test_of_several_of_that_configuration_the_one_of_its_name_goes_first():
    assert find(GEMM, [renamed(GEMM, "other"), SPLIT, GEMM]) == (Match.CONFIGURATION, GEMM)


@pytest.mark.parametrize(
    "change", [{"grid": (9, 4, 1)}, {"block": (64, 1, 1)}, {"shared_memory": 0}, {"registers": 255}]
)
def test_another_configuration_leaves_it_to_the_exact_name(change):
    fields = {name: getattr(GEMM, name) for name in ("name", "grid", "block", "shared_memory", "registers")}
    other = Kernel(**(fields | change))

    assert find(GEMM, [SPLIT, other]) == (Match.NAME, other)


@pytest.mark.parametrize("name", ["void sm90_gemm_128x64<float>", "gemm_128x64"])
def test_then_a_name_that_holds_the_other_either_way(name):
    found = Kernel(name, (1, 1, 1), (1, 1, 1), 0, 1)

    assert find(GEMM, [SPLIT, found]) == (Match.SUBSTRING, found)


def test_last_the_most_frequent():
    wanted = Kernel("something else", (7, 1, 1), (7, 1, 1), 0, 7)

    assert find(wanted, [GEMM, SPLIT, SPLIT, COPY, COPY, COPY]) == (Match.FREQUENT, SPLIT)


def test_a_copy_is_found_as_a_copy_and_never_for_a_kernel():
    assert find(COPY, [GEMM, COPY]) == (Match.NAME, COPY)
    assert find(COPY, [GEMM]) == (None, None)
    assert find(GEMM, [COPY]) == (None, None)
    assert find(GEMM, []) == (None, None)


@pytest.fixture
def replayed(reference, tmp_path):
    """Write a made-up trace of a replay on a GPU, with configurations of kernels by name."""

    def replayed(events, *kernels):
        tree = json.loads(reference.to_json(events))
        for event in tree["traceEvents"]:
            for kernel in kernels:
                if event["name"] == kernel.name:
                    event["args"] |= {
                        "grid": kernel.grid,
                        "block": kernel.block,
                        "shared memory": kernel.shared_memory,
                        "registers per thread": kernel.registers,
                    }
        path = tmp_path / "trace.json"
        path.write_text(json.dumps(tree))
        return path

    return replayed


def window(reference, start, end, size=Size.FULL):
    return reference.step("", start, end) | {"name": WINDOW + size}


def run(reference, at, number):
    """One run of an op that copies, multiplies and reduces."""
    r = reference
    return [
        r.op("aten::mm", at, at + 100),
        r.call("cudaMemcpyAsync", at + 10, at + 15, number),
        r.memcpy("Memcpy DtoD (Device -> Device)", at + 20, at + 24, number),
        r.call("cudaLaunchKernel", at + 35, at + 40, number + 1),
        r.kernel(GEMM.name, at + 52, at + 80, number + 1),
        r.call("cudaLaunchKernel", at + 47, at + 50, number + 2),
        r.kernel(SPLIT.name, at + 82, at + 89, number + 2),
    ]


def test_each_kernels_dispatch_starts_where_the_launch_before_it_returned(reference, replayed):
    events = [event for n in range(3) for event in run(reference, 1000 * n + 100, 10 * n)]
    warm_up = run(reference, 9000, 900)
    path = replayed([window(reference, 50, 5000), *events, *warm_up], GEMM, SPLIT)

    seen, runs = _seen(path)
    entries = [_entry(Call("aten::mm", ()), kernel, seen, runs, 1) for kernel in (GEMM, SPLIT, COPY)]

    gemm, split, copy = entries
    assert runs == 3
    assert {entry.outcome for entry in entries} == {Outcome.MEASURED}
    assert (gemm.dispatch.median_ns, gemm.launch.median_ns, gemm.active.median_ns) == (20, 17, 28)  # 15 to 35
    assert (split.dispatch.median_ns, split.launch.median_ns, split.active.median_ns) == (7, 35, 7)  # 40 to 47
    assert (copy.dispatch.median_ns, copy.launch, copy.active.median_ns) == (10, None, 4)
    assert [entry.match_ratio for entry in entries] == [1, 1, 1]
    assert [entry.dispatch.samples for entry in entries] == [3, 3, 3]


def test_the_match_ratio_is_the_share_of_runs_that_showed_the_kernel(reference, replayed):
    events = run(reference, 100, 1) + [event for event in run(reference, 1100, 20) if event["name"] != SPLIT.name]
    seen, runs = _seen(replayed([window(reference, 50, 5000), *events], GEMM, SPLIT))

    entry = _entry(Call("aten::mm", ()), SPLIT, seen, runs, 1)

    assert (entry.match, entry.match_ratio, runs) == (Match.CONFIGURATION, 0.5, 2)


def test_a_kernel_not_seen_is_a_failure_with_its_reason(reference, replayed):
    seen, runs = _seen(replayed([window(reference, 50, 5000), reference.op("aten::mm", 60, 90)], GEMM))

    entry = _entry(Call("aten::mm", ()), GEMM, seen, runs, 1)

    assert entry.outcome is Outcome.FAILED
    assert entry.reason == "its kernel was not seen in its replay"
    assert entry.signature == signature(Call("aten::mm", ()), GEMM)


def test_an_ops_own_time_is_what_follows_its_last_child(reference, tmp_path):
    r = reference
    path = tmp_path / "trace.json"
    path.write_text(
        r.to_json(
            [
                window(r, 0, 1000, Size.FULL),
                r.op("aten::linear", 100, 200),
                r.op("aten::t", 110, 120),
                r.op("aten::addmm", 130, 170),  # 30 after it
                r.op("aten::expand", 135, 140),
                r.op("aten::linear", 300, 350),  # 50, without a child
                window(r, 2000, 3000, Size.ZERO),
                r.op("aten::linear", 2100, 2107),
                r.op("aten::linear", 4000, 4100),  # outside of the windows
                window(r, 5000, 6000, Size.FULL),
                r.op("aten::linear", 5100, 5105),
            ]
        )
    )

    turns = _turns(read_events(path))

    assert [{name: times.tolist() for name, times in turn.items()} for turn in turns] == [
        {Size.FULL: [30, 50], Size.ZERO: [7]},
        {Size.FULL: [5]},
    ]


def test_turns_in_which_the_core_was_slow_are_told_by_the_shortest_ever_seen():
    gauge = Gauge()
    slow, quick, best = ({PACE: np.array([pace, pace, 9000])} for pace in (1500, 800, 750))

    assert gauge.at_full_pace([slow]) == [slow]  # nothing better is known
    assert gauge.at_full_pace([slow, quick, best]) == [quick, best]
    assert gauge.at_full_pace([quick, slow, best]) == [best]  # the first became slow before it was over
    assert gauge.at_full_pace([slow]) == []


OPTIONS = Options(max_bytes=2**28, runs=20)


@pytest.fixture(scope="module")
def replay():
    """Replay a call in this process."""

    def replay(call):
        (entry,) = measure(Task(call=call), OPTIONS, now_ns=lambda: 77)
        return entry

    return replay


def test_a_real_op_is_dispatch_front_end_and_work(replay):
    big = Input("float", (512, 512), (512, 1))

    entry = replay(Call("aten::mm", (big, big)))

    assert entry.outcome is Outcome.MEASURED, entry.reason
    assert entry.signature == signature(Call("aten::mm", (big, big)))
    assert 0 < entry.dispatch.median_ns < 10**6
    assert entry.library.median_ns >= 0
    assert entry.active.median_ns > 10 * entry.dispatch.median_ns  # 134 million multiplications
    assert 1 <= entry.active.samples < entry.dispatch.samples  # what is short is run more often
    assert entry.measured_unix_ns == 77


def test_an_op_that_takes_no_inputs_without_elements_says_so(replay):
    entry = replay(Call("aten::argmax", (Input("float", (4,), (1,)), Input(""), Input("Scalar", value="False"))))

    assert entry.outcome is Outcome.FAILED
    assert "without elements" in entry.reason


@pytest.mark.parametrize(
    ("call", "outcome", "reason"),
    [
        (Call("aten::mm", (FLOATS, Input("float", (3, 3), (3, 1)))), Outcome.FAILED, "RuntimeError"),
        (Call("aten::mm", None), Outcome.DENIED, "recorded without shapes"),
        (Call("aten::relu", (Input("float", (2**38,), (1,)),)), Outcome.OUT_OF_MEMORY, "1024.0 GiB"),
    ],
)
def test_what_cannot_be_replayed_is_an_outcome_and_no_exception(replay, call, outcome, reason):
    entry = replay(call)

    assert entry.outcome is outcome
    assert reason in entry.reason
    assert entry.dispatch is None
