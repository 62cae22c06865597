"""Where a trace's steps begin and end, and what each worked on, read from its annotations.

Known forms, tried in this order: our own captures (`taxbreak.step:<id>`), vLLM
(`execute_context_1(888)_generation_0(0)` and `execute_8192_context_9(sq…)_generation_37(sq…)`; `execute_new_1_cached_0`
before them), SGLang (`step[DECODE bs=16]`, `step[EXTEND bs=1 toks=512]`), the profiler's own `ProfilerStep#n`. A trace
without any is one step.

A live recording holds the steps beside its sample too (`taxbreak.neighbour:before` and `:after`), or of the one after
only that it began, and marks what is the engine's time within a step (`taxbreak.engine`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.model.step import Batch, Phase
from taxbreak_vllm.trace.events import EventKind, Events

OWN_PREFIX = "taxbreak.step:"
BEFORE = "taxbreak.neighbour:before"
AFTER = "taxbreak.neighbour:after"
ENGINE = "taxbreak.engine"
_ROUNDED_NS = 1000  # what times written as whole µs are off by

_VLLM = re.compile(r"execute(?:_\d+)?_context_(\d+)\((?:sq)?(\d+)[^)]*\)_generation_(\d+)\((?:sq)?(\d+)[^)]*\)")
_VLLM_FIRST = re.compile(r"execute_new_(\d+)_cached_(\d+)")
_SGLANG = re.compile(r"step\[(\w+)(?:\s+bs=(\d+))?(?:\s+toks=(\d+))?")
_SGLANG_PHASES = {
    "EXTEND": Phase.PREFILL,
    "PREFILL": Phase.PREFILL,
    "DECODE": Phase.DECODE,
    "MIXED": Phase.MIXED,
    "TARGET_VERIFY": Phase.VERIFY,
    "IDLE": Phase.IDLE,
}


@dataclass(frozen=True, slots=True)
class StepWindow:
    """One step on the host: [start_ns, end_ns) in trace time, on the thread (into Events.threads) of its annotation.

    `next_ns` is the start of the step after it, `has_before` tells whether the one before was recorded too; of a live
    recording alone.
    """

    name: str
    thread: int
    start_ns: int
    end_ns: int
    phase: Phase | None
    batch: Batch
    next_ns: int | None = None
    has_before: bool = False


def find_steps(events: Events) -> list[StepWindow]:
    """Return the steps by start time, disjoint: a step that begins inside another one is part of that.

    One that begins less than a µs before the end of the one before on its thread, which is rounding, begins there.
    """
    return find_steps_and_folded(events)[0]


def find_steps_and_folded(events: Events) -> tuple[list[StepWindow], int]:
    """Return the steps, and how many of another thread are part of them."""
    rows = events.rows(EventKind.ANNOTATION)
    for reads in _READERS:
        read = {name: reads(events.names[name]) for name in np.unique(events.name[rows]).tolist()}
        chosen = [row for row in rows.tolist() if read[int(events.name[row])] is not None]
        if chosen:
            steps, num_folded = _disjoint(events, chosen, read)
            return _among_neighbours(events, rows.tolist(), steps), num_folded
    return [], 0


def engine_spans(events: Events, window: StepWindow) -> list[tuple[int, int]]:
    """Return what of a step's window is the engine's, disjoint and by time."""
    rows = [row for row in events.rows(EventKind.ANNOTATION).tolist() if events.names[events.name[row]] == ENGINE]
    spans = [
        (max(int(events.start_ns[row]), window.start_ns), min(int(events.end_ns[row]), window.end_ns))
        for row in rows
        if events.thread[row] == window.thread
    ]
    return sorted(span for span in spans if span[0] < span[1])


def _among_neighbours(events: Events, rows: list[int], steps: list[StepWindow]) -> list[StepWindow]:
    """Tell each step what was recorded beside it."""
    before = [row for row in rows if events.names[events.name[row]] == BEFORE]
    after = [row for row in rows if events.names[events.name[row]] == AFTER]
    if not before and not after:
        return steps
    return [
        replace(
            step,
            next_ns=min(
                (
                    start_ns
                    for row in after
                    if events.thread[row] == step.thread and (start_ns := int(events.start_ns[row])) >= step.end_ns
                ),
                default=None,
            ),
            has_before=any(
                events.thread[row] == step.thread and events.start_ns[row] < step.start_ns for row in before
            ),
        )
        for step in steps
    ]


def _disjoint(
    events: Events, rows: list[int], meaning: Mapping[int, tuple[Phase | None, Batch] | None]
) -> tuple[list[StepWindow], int]:
    steps: list[StepWindow] = []
    num_folded = 0
    for row in sorted(rows, key=lambda row: (events.start_ns[row], -events.end_ns[row])):
        start_ns, end_ns, name = int(events.start_ns[row]), int(events.end_ns[row]), int(events.name[row])
        thread = int(events.thread[row])
        if steps and start_ns < steps[-1].end_ns:
            if thread != steps[-1].thread or steps[-1].end_ns - start_ns > _ROUNDED_NS or end_ns <= steps[-1].end_ns:
                num_folded += thread != steps[-1].thread
                continue
            start_ns = steps[-1].end_ns
        phase, batch = meaning[name] or (None, Batch())
        label = events.names[name].removeprefix(OWN_PREFIX)
        steps.append(StepWindow(label, thread, start_ns, end_ns, phase, batch))
    return steps, num_folded


def _read_own(name: str) -> tuple[Phase | None, Batch] | None:
    return (None, Batch()) if name.startswith(OWN_PREFIX) else None


def _read_vllm(name: str) -> tuple[Phase | None, Batch] | None:
    if match := _VLLM.match(name):
        context_requests, context_tokens, generation_requests, generation_tokens = map(int, match.groups())
        # A decode step that checks drafts schedules several tokens a request: how many were kept is not in the name.
        kept = generation_requests if generation_tokens <= generation_requests else None
        return _phase(context_requests, generation_requests, generation_tokens), Batch(
            requests=context_requests + generation_requests, prompt_tokens=context_tokens, output_tokens=kept
        )
    if match := _VLLM_FIRST.match(name):
        new, cached = map(int, match.groups())
        return _phase(new, cached, cached), Batch(requests=new + cached)
    return None


def _phase(context_requests: int, generation_requests: int, generation_tokens: int) -> Phase:
    if context_requests and generation_requests:
        return Phase.MIXED
    if context_requests:
        return Phase.PREFILL
    if generation_tokens > generation_requests:
        return Phase.VERIFY
    return Phase.DECODE if generation_requests else Phase.IDLE


def _read_sglang(name: str) -> tuple[Phase | None, Batch] | None:
    match = _SGLANG.match(name)
    if not match:
        return None
    phase = _SGLANG_PHASES.get(match[1])
    requests = int(match[2]) if match[2] else None
    return phase, Batch(
        requests=requests,
        prompt_tokens=int(match[3]) if match[3] and phase is Phase.PREFILL else None,
        output_tokens=requests if phase is Phase.DECODE else None,
    )


def _read_profiler(name: str) -> tuple[Phase | None, Batch] | None:
    return (None, Batch()) if name.startswith("ProfilerStep#") else None


def whole_trace(events: Events) -> StepWindow:
    """Return the window of everything recorded on host and device, on the thread with most events of the host."""
    host_end_ns = events.end_ns[events.rows(EventKind.OP, EventKind.RUNTIME, EventKind.ANNOTATION)].max(
        initial=events.first_ns
    )
    return whole_window(events.first_ns, int(host_end_ns), events_by_thread(events))


def events_by_thread(events: Events) -> NDArray[np.int64]:
    """Count the events of each thread, int64[2, threads]: ops and calls, then annotations."""
    counts = [
        np.bincount(events.thread[rows], minlength=len(events.threads))
        for rows in (events.rows(EventKind.OP, EventKind.RUNTIME), events.rows(EventKind.ANNOTATION))
    ]
    return np.array(counts, dtype=np.int64)


def whole_window(first_ns: int, host_end_ns: int, by_thread: NDArray[np.int64]) -> StepWindow:
    """Return the one step of a trace without steps; `by_thread` (of `events_by_thread`) tells whose it is."""
    counts = by_thread[0] if by_thread[0].any() else by_thread[1]
    thread = int(counts.argmax()) if counts.any() else 0
    return StepWindow("trace", thread, first_ns, host_end_ns, None, Batch())


def is_step_name(name: str) -> bool:
    """Tell whether an annotation of this name can be a step, or a neighbour of one."""
    return name in (BEFORE, AFTER) or any(reads(name) is not None for reads in _READERS)


_READERS = (_read_own, _read_vllm, _read_sglang, _read_profiler)
