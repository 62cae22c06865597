"""Steps as vLLM, SGLang, the profiler and our own captures mark them."""

import pytest

from taxbreak_vllm.model.step import Batch, Phase
from taxbreak_vllm.trace.steps import find_steps, whole_trace

NAMES = {
    "execute_context_1(888)_generation_0(0)": (Phase.PREFILL, (1, 888, 0)),
    "execute_context_1(888_788544)_generation_0(0)": (Phase.PREFILL, (1, 888, 0)),
    "execute_context_0(0)_generation_16(16)": (Phase.DECODE, (16, 0, 16)),
    "execute_context_2(300)_generation_5(5)": (Phase.MIXED, (7, 300, 5)),
    "execute_context_0(0)_generation_0(0)": (Phase.IDLE, (0, 0, 0)),
    # Three drafts a request are checked: how many are kept the name does not tell.
    "execute_context_0(0)_generation_4(16)": (Phase.VERIFY, (4, 0, None)),
    "execute_8192_context_9(sq8155sk8430sqsq7475785sqsk7671310)_generation_37(sq37sk34489sqsq37sqsk34489)": (
        Phase.MIXED,
        (46, 8155, 37),
    ),
    "execute_16_context_0(sq0sk0sqsq0sqsk0)_generation_16(sq16sk8193sqsq16sqsk8193)": (Phase.DECODE, (16, 0, 16)),
    "execute_new_3_cached_0": (Phase.PREFILL, (3, None, None)),
    "execute_new_1_cached_7": (Phase.MIXED, (8, None, None)),
    "execute_new_0_cached_7": (Phase.DECODE, (7, None, None)),
    "step[DECODE bs=16]": (Phase.DECODE, (16, None, 16)),
    "step[EXTEND bs=1 toks=512]": (Phase.PREFILL, (1, 512, None)),
    "step[MIXED bs=4 toks=700]": (Phase.MIXED, (4, None, None)),
    "step[TARGET_VERIFY bs=2]": (Phase.VERIFY, (2, None, None)),
    "step[IDLE]": (Phase.IDLE, (None, None, None)),
    "step[DRAFT_EXTEND bs=3]": (None, (3, None, None)),
    "ProfilerStep#6": (None, (None, None, None)),
    "taxbreak.step:s-7": (None, (None, None, None)),
}


@pytest.fixture
def annotate(reference):
    return lambda name, start, end, *, thread=1: reference.step("", start, end, thread=thread) | {"name": name}


@pytest.mark.parametrize("name", NAMES)
def test_phase_and_batch_are_read_from_the_name(read, annotate, name):
    (step,) = find_steps(read([annotate(name, 10, 90)]))

    phase, (requests, prompt_tokens, output_tokens) = NAMES[name]
    assert step.phase is phase
    assert step.batch == Batch(requests=requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    assert (step.start_ns, step.end_ns) == (10, 90)
    assert step.name == name.removeprefix("taxbreak.step:")


def test_the_first_known_form_wins(read, annotate):
    events = [
        annotate("ProfilerStep#1", 0, 100),
        annotate("step[DECODE bs=16]", 5, 95),
        annotate("execute_context_0(0)_generation_16(16)", 10, 90),
        annotate("## Call CompiledFxGraph f ##", 20, 30),
    ]

    assert [step.start_ns for step in find_steps(read(events))] == [10]
    assert [step.start_ns for step in find_steps(read([annotate("taxbreak.step:a", 50, 60), *events]))] == [50]
    assert find_steps(read(events[3:])) == []


def test_steps_come_by_time_and_do_not_overlap(read, annotate):
    events = [
        annotate("ProfilerStep#2", 100_000, 200_000),
        annotate("ProfilerStep#1", 0, 100_000),
        annotate("ProfilerStep#2", 100_000, 150_000),  # begins with a longer one: part of it
        annotate("ProfilerStep#3", 150_000, 250_000),  # begins inside one: part of it
        annotate("ProfilerStep#4", 200_000, 300_000),
    ]

    steps = find_steps(read(events))

    assert [(step.start_ns, step.end_ns) for step in steps] == [(0, 100_000), (100_000, 200_000), (200_000, 300_000)]


def test_a_step_that_crosses_the_one_before_by_rounding_begins_at_its_end(read, annotate):
    events = [annotate("ProfilerStep#1", 0, 100_000), annotate("ProfilerStep#2", 99_001, 199_001)]

    steps = find_steps(read(events))

    assert [(step.start_ns, step.end_ns) for step in steps] == [(0, 100_000), (100_000, 199_001)]


def test_a_step_knows_its_thread(read, annotate, reference):
    events = read([reference.op("aten::mm", 0, 5, thread=1), annotate("ProfilerStep#1", 0, 100, thread=2)])

    (step,) = find_steps(events)

    assert events.threads[step.thread] == ("4000", "2")


def test_the_whole_trace_reaches_from_the_first_event_to_the_last_of_the_host(read, reference):
    r = reference
    events = read(
        [
            r.op("aten::mm", 20, 50, thread=3),
            r.op("aten::mm", 30, 40, thread=3),
            r.call("cudaLaunchKernel", 35, 60, 1, thread=4),
            r.kernel("early", 10, 15),
            r.kernel("late", 70, 90, 1),
        ]
    )

    whole = whole_trace(events)

    assert (whole.start_ns, whole.end_ns) == (10, 60)
    assert events.threads[whole.thread] == ("4000", "3")  # two events of three


def test_a_trace_of_a_device_alone_has_no_host_time(analyze, reference):
    total = analyze([reference.kernel("a", 10, 20), reference.kernel("b", 30, 40)]).total

    assert total.window_ns == 0
    assert (total.device.window_ns, total.device.active_ns, total.device.idle_ns) == (30, 20, 10)
