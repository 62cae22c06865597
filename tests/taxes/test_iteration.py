"""A live recording of a step and its neighbours: every number can be checked by eye (ms and µs of made-up servers)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.model.breakdown import EnginePart, ExposedTax, IdleTime
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.read.kineto import read_events

US = 1000
MS = 1000 * US

INFO = StepInfo(
    step_id="m",
    step_index=2,
    server=Server(server_id="s", device_type="cuda", torch="2.13.0"),
    phase=Phase.DECODE,
    batch=Batch(requests=1, output_tokens=1),
    graph_mode=GraphMode.NONE,
    started_unix_ns=0,
    window_ns=4 * MS,
    async_output=True,
    num_bracketed=3,
)


@pytest.fixture
def record(read, rules):
    """Decompose a capture of made-up events."""

    def record(events, *, floor_ns=None, **told):
        return Recording(read(events), Terms(rules=rules, floor_ns=floor_ns), info=replace(INFO, **told)).breakdown

    return record


def _launches(t, start, host_ns, kernel_ns, device_free, number, *, num=10):
    """A step of `num` ops of equal length, each launching at its end; return its events and when its device is done."""
    events, each = [], host_ns // num
    for index in range(num):
        begin, correlation = start + index * each, number * 100 + index
        launch = begin + each - 10 * US
        device_free = max(device_free, launch + 5 * US)
        events += [
            t.op("aten::silu", begin, begin + each),
            t.call("cudaLaunchKernel", launch, begin + each, correlation),
            t.kernel("silu_kernel", device_free, device_free + kernel_ns // num, correlation),
        ]
        device_free += kernel_ns // num
    return events, device_free


def _device_bound(t, *, last=3):
    """4 ms of host work for 20 ms of the device, one step ahead: the host then waits for the step before."""
    events, device_free, start = [], 0, 0
    done_before = 0
    for number in range(last):
        step = {0: ("before",), 2: ("after",)}.get(number)
        mark = t.step("m", start, start + 4 * MS) if step is None else t.neighbour(*step, start, start + 4 * MS)
        launches, device_free = _launches(t, start, 4 * MS, 20 * MS, device_free, number)
        waits_until = max(start + 4 * MS, done_before)
        wait = t.call("cudaEventSynchronize", start + 4 * MS, waits_until)
        events += [mark, *launches, *([wait] if waits_until > start + 4 * MS else [])]
        done_before, start = device_free, waits_until + 100 * US
    return events


def test_a_device_bound_server_that_works_ahead_is_device_bound_and_idles_for_nothing(reference, record):
    breakdown = record(_device_bound(reference), floor_ns=2 * US)

    (step,) = breakdown.steps
    # 10 launches of 390 µs of dispatch each: 3.9 ms and 20 µs of floor against 20 ms
    assert step.taxes.orchestration_ns == 3_920 * US
    assert step.hdbi == pytest.approx(20 / 23.92)
    assert step.device.active_ns == 20 * MS
    assert (step.device.idle_ns, step.exposed) == (0, ExposedTax())
    assert step.iteration.idle == {"host": 0, "blocked": 0, "queue": 0, "engine": 0}
    assert step.iteration.active_ns + step.iteration.other_active_ns == step.iteration.window_ns
    assert breakdown.total.hdbi == step.hdbi


def _host_bound(t, *, after_ns=4 * MS):
    """4 ms of host work, 40 µs of the engine, and 10 kernels of 10 µs: the device waits for every launch."""
    events, device_free = [], 0
    for number, mark in enumerate((t.neighbour("before", 0, 1), t.step("m", 0, 1), t.neighbour("after", 0, 1))):
        start = number * 4_040 * US
        end = start + (after_ns if number == 2 else 4 * MS)
        events.append(mark | {"start": start, "end": end})
        if end > start + 1:
            launches, device_free = _launches(t, start, 4 * MS, 100 * US, device_free, number)
            events += launches
    return events


@pytest.mark.parametrize("after_ns", [4 * MS, 1], ids=["whole step after it", "its start alone"])
def test_a_host_bound_server_waits_for_its_host_in_the_step_and_for_the_engine_between(reference, record, after_ns):
    (step,) = record(_host_bound(reference, after_ns=after_ns), floor_ns=2 * US).steps

    # A kernel begins 5 µs into its launch call of 10 µs and ends 5 µs after it, the last one in the engine's 40 µs.
    # Before the first launch the device waits 390 µs for the host, before each other one 385 µs.
    assert step.iteration.window_ns == 4_040 * US
    assert (step.iteration.active_ns, step.iteration.other_active_ns) == (100 * US, 0)
    assert step.iteration.idle_ns == 3_940 * US
    assert step.iteration.idle == {"host": 3_855 * US, "blocked": 0, "queue": 50 * US, "engine": 35 * US}
    assert step.iteration.engine == {"output": EnginePart(), "loop": EnginePart(busy_ns=40 * US, exposed_ns=35 * US)}
    assert step.exposed == ExposedTax(delta_ft_ns=3_855 * US)
    assert step.device.active_ns == 100 * US
    assert step.device.idle == IdleTime(host_ns=3_855 * US, queue_ns=50 * US, edge_ns=35 * US)
    assert step.hdbi == pytest.approx(100 / (100 + 3_900 + 20))


def test_without_a_floor_the_launch_tax_of_a_live_server_is_unknown_and_so_is_its_balance(reference, record):
    breakdown = record(_device_bound(reference))

    (step,) = breakdown.steps
    assert (step.taxes.delta_kt_ns, step.taxes.orchestration_ns, step.hdbi) == (None, None, None)
    assert step.taxes.delta_ft_ns == 3_900 * US
    assert any("T_sys is not read from them" in note for note in breakdown.notes)


@pytest.mark.parametrize("lacks", ["before", "after"])
def test_a_step_alone_says_nothing_of_a_device_that_works_behind_its_host(reference, record, lacks):
    events = [e for e in _device_bound(reference) if e["name"] != f"taxbreak.neighbour:{lacks}"]

    (step,) = record(events, floor_ns=2 * US, num_bracketed=2).steps

    assert (step.iteration, step.hdbi, step.device.idle_ns) == (None, None, None)
    assert step.device.idle == IdleTime.unknown()
    assert step.exposed == ExposedTax.unknown()
    assert step.taxes.orchestration_ns == 3_920 * US
    assert "idle time, exposed tax and HDBI are null" in step.notes[0]


def test_a_capture_of_one_step_of_a_server_that_waits_for_its_tokens_is_whole(reference, record):
    t = reference
    launches, done = _launches(t, 0, 4 * MS, 100 * US, 0, 1)
    events = [t.step("m", 0, done), *launches]

    (step,) = record(events, floor_ns=2 * US, async_output=False, num_bracketed=1).steps

    assert step.iteration is None
    assert step.hdbi == pytest.approx(100 / (100 + 3_920))
    assert step.device.idle_ns == done - 100 * US


def test_such_a_server_needs_the_start_of_the_next_step_alone_for_an_iteration(reference, record):
    t = reference
    launches, done = _launches(t, 0, 4 * MS, 100 * US, 0, 1)
    events = [t.step("m", 0, done), *launches, t.neighbour("after", done + 60 * US, done + 61 * US)]

    (step,) = record(events, floor_ns=2 * US, async_output=False, num_bracketed=2).steps

    assert step.iteration.window_ns == done + 60 * US
    assert step.iteration.engine["loop"] == EnginePart(busy_ns=60 * US, exposed_ns=60 * US)
    assert step.device.idle.edge_ns == 60 * US


def test_the_pause_of_a_step_for_its_grammar_is_the_engines_and_no_tax(reference, record):
    t = reference
    events = [
        t.neighbour("before", 0, 10 * US),
        t.step("m", 20 * US, 120 * US),
        t.op("aten::mm", 25 * US, 35 * US),
        t.call("cudaLaunchKernel", 33 * US, 35 * US, 1),
        t.kernel("mm_kernel", 34 * US, 40 * US, 1),
        t.engine(40 * US, 100 * US),
        t.op("aten::argmax", 105 * US, 110 * US),
        t.call("cudaLaunchKernel", 108 * US, 110 * US, 2),
        t.kernel("argmax_kernel", 109 * US, 119 * US, 2),
        t.neighbour("after", 130 * US, 131 * US),
    ]

    (step,) = record(events, floor_ns=1 * US).steps

    assert step.window_ns == 40 * US
    assert sum(getattr(step.host, name) for name in step.host.__dataclass_fields__) == 40 * US
    assert step.iteration.engine["loop"] == EnginePart(busy_ns=70 * US, exposed_ns=70 * US)
    # 5 µs of Python before each op and before the pause, 8 and 3 of dispatch
    assert step.taxes.delta_ft_ns == (5 + 8 + 5 + 5 + 3) * US


@st.composite
def _servers(draw):
    """Three steps on two threads, with launches, waits and pauses anywhere and kernels after their launches."""
    durations = st.integers(0, 30)
    events, now, device_free, correlation = [], 0, 0, 0
    windows = []
    for _ in range(3):
        start = now
        for _ in range(draw(st.integers(0, 4))):
            now += draw(durations)
            kind = draw(st.sampled_from(["launch", "wait", "pause", "copy"]))
            length = draw(st.integers(1, 20))
            if kind in ("launch", "copy"):
                correlation += 1
                thread = draw(st.sampled_from([1, 1, 1, 2]))
                name = "cudaLaunchKernel" if kind == "launch" else "cudaMemcpyAsync"
                events.append(("op", "aten::mm", now, now + length, None, thread))
                events.append(("call", name, now + length // 2, now + length, correlation, thread))
                device_free = max(device_free, now + length // 2 + draw(durations))
                run = draw(st.integers(1, 60))
                if draw(st.integers(0, 39)):
                    events.append(("kernel", "k", device_free, device_free + run, correlation, None))
                device_free += run
            elif kind == "wait":
                events.append(("call", "cudaStreamSynchronize", now, now + length, None, 1))
            else:
                events.append(("pause", "", now, now + length, None, 1))
            now += length
        now += draw(st.integers(1, 20))
        windows.append((start, now))
        now += draw(durations)
    return events, windows


@given(server=_servers())
def test_an_iteration_is_tiled_to_the_nanosecond_by_its_device_and_by_its_thread(
    server, reference, rules, tmp_path_factory
):
    made, windows = server
    t = reference
    build = {
        "op": lambda name, start, end, _, thread: t.op(name, start, end, thread=thread),
        "call": lambda name, start, end, number, thread: t.call(name, start, end, number, thread=thread),
        "kernel": lambda name, start, end, number, _: t.kernel(name, start, end, number),
        "pause": lambda _, start, end, __, ___: t.engine(start, end),
    }
    events = [build[kind](*rest) for kind, *rest in made]
    events += [t.neighbour("before", *windows[0]), t.step("m", *windows[1]), t.neighbour("after", *windows[2])]
    events += [t.kernel("k", windows[2][1] + 500, windows[2][1] + 510)]  # there is a device
    path = tmp_path_factory.mktemp("iteration") / "trace.json"
    path.write_text(t.to_json(events))

    (step,) = Recording(read_events(path), Terms(rules=rules, floor_ns=MS), info=INFO).breakdown.steps

    i = step.iteration
    if step.exposed.other_ns is None:  # too much of what was launched left no record
        assert i is None
        return
    assert i.window_ns == windows[2][0] - windows[1][0]
    assert i.active_ns + i.other_active_ns + i.idle_ns == i.window_ns
    assert sum(i.idle.values()) == i.idle_ns
    assert min(*i.idle.values(), i.active_ns, i.other_active_ns) >= 0
    assert step.window_ns + sum(part.busy_ns for part in i.engine.values()) == i.window_ns
    assert sum(getattr(step.host, name) for name in step.host.__dataclass_fields__) == step.window_ns
    assert sum(part.exposed_ns for part in i.engine.values()) == i.idle["engine"]
    assert sum(getattr(step.exposed, name) for name in step.exposed.__dataclass_fields__) == i.idle["host"]
    assert step.device.active_ns + step.device.other_active_ns + step.device.idle_ns == step.device.window_ns
