"""Where a trace may be cut, and what each part must have; every number can be checked by eye."""

import pytest

from taxbreak_vllm.trace.large.cuts import Parts
from taxbreak_vllm.trace.large.spill import SpilledEvents, open_trace
from taxbreak_vllm.trace.survey import TraceSurvey


@pytest.fixture
def parts(reference, tmp_path):
    """The parts of made-up events, each as small as it may be."""

    def parts(events):
        path = tmp_path / "trace.json"
        path.write_text(reference.to_json(events))
        with open_trace(path, spill_above_bytes=0, rows_per_part=1) as trace:
            assert isinstance(trace, SpilledEvents)
            with Parts(trace, TraceSurvey.of(trace.head, trace.chunks())) as made:
                return list(made)

    return parts


def spans(part):
    names = part.events.names
    columns = (part.events.name, part.events.start_ns, part.events.end_ns)
    return sorted((names[name], start, end) for name, start, end in zip(*(c.tolist() for c in columns), strict=True))


def bounds(made):
    return [(part.start_ns, part.end_ns) for part in made]


def test_a_trace_is_cut_between_ops_and_never_within_one(parts, reference):
    op = reference.op
    made = parts([op("a", 0, 10), op("b", 20, 40), op("c", 25, 30), op("d", 50, 60), op("e", 60, 70)])

    # Not at 25 (b is open), nor at 60 (d ends there: ops that touch are told apart by what comes before).
    assert bounds(made) == [(0, 20), (20, 50), (50, 71)]
    assert [spans(part) for part in made] == [
        [("a", 0, 10)],
        [("b", 20, 40), ("c", 25, 30)],
        [("d", 50, 60), ("e", 60, 70)],
    ]


def test_an_op_of_another_thread_forbids_a_cut_and_a_thread_that_only_waits_does_not(parts, reference):
    op, call = reference.op, reference.call

    assert len(parts([op("a", 0, 10), op("b", 20, 30), op("c", 5, 25, thread=2)])) == 1
    made = parts([op("a", 0, 10), op("b", 20, 30), call("cudaEventSynchronize", 5, 25, 7, thread=2)])
    assert [spans(part) for part in made] == [
        [("a", 0, 10), ("cudaEventSynchronize", 5, 20)],
        [("b", 20, 30), ("cudaEventSynchronize", 20, 25)],
    ]


def test_a_step_is_never_cut(parts, reference):
    op, step = reference.op, reference.step
    made = parts([step("s", 0, 30), op("a", 0, 10), op("b", 20, 30), step("t", 40, 60), op("c", 45, 50)])

    assert bounds(made) == [(0, 40), (40, 61)]
    assert [[window.name for window in part.windows] for part in made] == [["s"], ["t"]]


def test_a_part_has_what_runs_late_into_it_with_its_launch_and_what_begins_before_its_own_work_ends(parts, reference):
    r = reference
    made = parts(
        [
            r.call("cudaLaunchKernel", 0, 5, 1),
            r.kernel("late", 10, 45, 1),
            r.call("cudaLaunchKernel", 20, 25, 2),
            r.kernel("own", 30, 60, 2, stream=8),
            r.call("cudaLaunchKernel", 40, 44, 3),
            r.kernel("early", 50, 70, 3),
        ]
    )

    assert bounds(made) == [(0, 20), (20, 40), (40, 71)]
    # The first: its own kernel runs until 45, so it sees what the second launched, which begins at 30; not the third.
    assert [name for name, _, _ in spans(made[0])] == ["cudaLaunchKernel"] * 2 + ["late", "own"]
    assert [name for name, _, _ in spans(made[1])] == ["cudaLaunchKernel"] * 3 + ["early", "late", "own"]
    assert [name for name, _, _ in spans(made[2])] == ["cudaLaunchKernel"] * 3 + ["early", "late", "own"]


def test_nothing_is_cut_between_a_kernel_and_a_launch_that_came_after_it(parts, reference):
    r = reference

    assert len(parts([r.op("a", 0, 5), r.kernel("k", 15, 30, 1), r.call("cudaLaunchKernel", 20, 25, 1)])) == 1
