"""Calls and their signatures: the same whoever writes and reads them, another one where anything differs."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from taxbreak_vllm.trace.calls import Call, Input, Kernel, signature
from taxbreak_vllm.trace.events import EventKind
from taxbreak_vllm.trace.read.kineto import read_events

ADD = Call(
    "aten::add",
    (Input("float", (4, 8), (8, 1)), Input("c10::BFloat16", (8,), (1,)), Input("Scalar", (), (), "1")),
)
KERNEL = Kernel("vectorized", (16, 1, 1), (128, 1, 1), 0, 32)
GOLDEN = "41a898dfdead1eac1cd9dbabf8712454"


def op(name="aten::add", ts=10, **args):
    own = {
        "Input Dims": [[4, 8], [8], []],
        "Input type": ["float", "c10::BFloat16", "Scalar"],
        "Input Strides": [[8, 1], [1], []],
        "Concrete Inputs": ["", "", "1"],
    }
    kept = {name: value for name, value in (own | args).items() if value is not None}
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": 5, "args": kept}


def kernel(ts=20, **args):
    own = {"grid": [16, 1, 1], "block": [128, 1, 1], "shared memory": 0, "registers per thread": 32, "correlation": 1}
    return {
        "ph": "X",
        "cat": "kernel",
        "name": "vectorized",
        "pid": 0,
        "tid": 7,
        "ts": ts,
        "dur": 5,
        "args": own | args,
    }


@pytest.fixture
def read_text(tmp_path):
    def read_text(text):
        (tmp_path / "trace.json").write_text(text)
        return read_events(tmp_path / "trace.json", with_calls=True).calls

    return read_text


@pytest.fixture
def read_list(read_text):
    return lambda *events: read_text(json.dumps({"traceEvents": events}))


def test_a_call_holds_what_the_profiler_saw(read_list):
    calls = read_list(op(), kernel())

    assert calls.calls == (ADD,)
    assert calls.kernels == (replace(KERNEL, name=""),)
    assert calls.kernels[0].named("vectorized") == KERNEL


def test_white_space_and_the_order_of_keys_do_not_matter(read_text):
    events = [op(), kernel(), op(ts=30)]
    turned = [dict(reversed(event.items())) | {"args": dict(reversed(event["args"].items()))} for event in events]

    tight = read_text(json.dumps({"traceEvents": events}, separators=(",", ":")))
    loose = read_text(json.dumps({"traceEvents": turned}, indent=3))
    mixed = read_text(
        json.dumps({"traceEvents": events[:1]}, separators=(",", ":"))[:-2]
        + ","
        + json.dumps(events[1:], indent=1)[1:]
        + "}"
    )

    for calls in (loose, mixed):
        assert (calls.calls, calls.kernels) == (tight.calls, tight.kernels)
        assert calls.call_of_op.tolist() == [0, 0]


def test_the_order_in_the_file_does_not_matter(read_list):
    events = [op(), op("aten::mul"), op(**{"Concrete Inputs": ["", "", "2"]})]

    forward, backward = read_list(*events), read_list(*reversed(events))

    assert {signature(call) for call in forward.calls} == {signature(call) for call in backward.calls}
    assert [forward.calls[i] for i in forward.call_of_op] == [backward.calls[i] for i in backward.call_of_op][::-1]


@pytest.mark.parametrize("seed", ["0", "1", "12345"])
def test_a_signature_is_the_same_in_every_process_and_on_every_machine(seed):
    script = f"from taxbreak_vllm.trace.calls import *; print(signature({ADD!r}, {KERNEL!r}))"

    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == signature(ADD, KERNEL) == GOLDEN


CHANGES = {
    "op": {"name": "aten::add_"},
    "shape": {"Input Dims": [[4, 9], [8], []]},
    "axes": {"Input Dims": [[4, 8, 1], [8], []], "Input Strides": [[8, 1, 1], [1], []]},
    "stride": {"Input Strides": [[1, 4], [1], []]},
    "no strides": {"Input Strides": None},
    "dtype": {"Input type": ["float", "c10::Half", "Scalar"]},
    "scalar": {"Concrete Inputs": ["", "", "2"]},
    "an argument more": {
        "Input Dims": [[4, 8], [8], [], []],
        "Input type": ["float", "c10::BFloat16", "Scalar", ""],
        "Input Strides": [[8, 1], [1], [], []],
        "Concrete Inputs": ["", "", "1", ""],
    },
    "no shapes": {"Input Dims": None},
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_call_changes_its_signature(read_list, change):
    calls = read_list(op(), op(**CHANGES[change]))

    assert len({signature(call, KERNEL) for call in calls.calls}) == 2


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"grid": (17, 1, 1)}, {"block": (64, 1, 1)}, {"shared_memory": 1024}],
    ids=lambda change: next(iter(change)),
)
def test_any_change_of_a_launch_changes_its_signature(change):
    assert signature(ADD, replace(KERNEL, **change)) != signature(ADD, KERNEL)


def test_registers_tell_kernels_apart_but_are_no_part_of_a_signature():
    """A driver's compiler may choose other ones for the same launch."""
    assert signature(ADD, replace(KERNEL, registers=255)) == signature(ADD, KERNEL)


def test_a_long_of_before_torch_2_1_is_the_long_of_today(read_list):
    old, new = (op(**{"Input type": [word, "c10::BFloat16", "Scalar"]}) for word in ("long", "long int"))

    assert len(read_list(old, new).calls) == 1


DAMAGED = {
    "dims are no list": {"Input Dims": "4x8"},
    "dims hold text": {"Input Dims": [["a"], [8], []]},
    "dims hold fractions": {"Input Dims": [[4.5], [8], []]},
    "dims hold objects": {"Input Dims": [{"a": 1}, [8], []]},
    "fewer dims than types": {"Input Dims": [[4, 8]]},
    "no types": {"Input type": None},
    "types are no list": {"Input type": 3},
    "strides are no list": {"Input Strides": 7},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_arguments_are_a_call_without_inputs_and_harm_no_other(read_list, damage):
    calls = read_list(op(), op(**DAMAGED[damage]), kernel(), op())

    assert [calls.calls[i] for i in calls.call_of_op] == [ADD, Call("aten::add", None), ADD]
    assert calls.configuration_of_kernel.tolist() == [0]


@pytest.mark.parametrize("damage", [{"grid": "big"}, {"block": [1.5]}, {"shared memory": "48 KB"}, {"grid": None}])
def test_a_damaged_launch_is_a_kernel_without_configuration(read_list, damage):
    assert read_list(op(), kernel(**damage)).kernels == (Kernel(),)


def test_what_makes_no_sense_has_a_call_only_where_it_has_a_row(read_list):
    calls = read_list({"ph": "X", "cat": "cpu_op", "name": 5, "ts": 1}, op(), {"ph": 3}, {"args": "none"}, op())

    assert [calls.calls[i] for i in calls.call_of_op] == [Call("5", None), ADD, ADD]


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7, 0.9])
def test_a_file_that_ends_in_the_middle_is_read_up_to_its_last_whole_event(tmp_path, keep):
    events = [event for n in range(100) for event in (op(f"aten::op{n % 7}", ts=10 * n), kernel(ts=10 * n + 6))]
    text = json.dumps({"traceEvents": events})
    path = tmp_path / "trace.json"
    path.write_text(text[: int(len(text) * keep)])

    calls = read_events(path, with_calls=True).calls

    assert 0 < len(calls.call_of_op) < 100
    assert_aligned(path)


def test_calls_stand_in_the_rows_of_the_events_on_every_real_trace(trace_path):
    assert_aligned(trace_path)


def assert_aligned(path):
    events = read_events(path, with_calls=True)
    calls = events.calls
    ops, kernels = events.rows(EventKind.OP), events.rows(EventKind.KERNEL)
    assert [calls.calls[i].op for i in calls.call_of_op] == [events.names[i] for i in events.name[ops]]
    assert len(calls.configuration_of_kernel) == len(kernels)
    assert len(set(calls.calls)) == len(calls.calls)


def test_calls_stay_with_their_rows_where_events_between_are_dropped(tmp_path):
    """An op without a time and a kernel whose time was never recorded have no row, so they have no call either."""
    late = 2_000_000_000_000_000.0
    events = [
        op(),
        op(ts=None),
        op(name="aten::mul", ts=late),
        kernel(ts=late),
        kernel(ts=0, grid=[9, 9, 9]) | {"dur": 0},
    ]
    events += [kernel(ts=late + 100, grid=[7, 1, 1])]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))

    read = read_events(path, with_calls=True)

    ops, kernels = read.rows(EventKind.OP), read.rows(EventKind.KERNEL)
    assert [read.calls.calls[i].op for i in read.calls.call_of_op] == [read.names[i] for i in read.name[ops]]
    grids = [read.calls.kernels[i].grid for i in read.calls.configuration_of_kernel]
    assert len(grids) == len(kernels) == 2
    assert grids[1] == (7, 1, 1)
