"""An engine's iterations for people: every part has its line, and what is missing is said."""

from taxbreak_vllm.model.engine import Durations, IterationReport, PhaseIterations
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.text.iterations import iteration_lines, iteration_tables
from tests.output.text.test_insight import cells, printed

WHOLE = Durations(median_ns=2_000_000, p90_ns=3_000_000)
DECODE = PhaseIterations(
    num=9,
    total=WHOLE,
    worker=Durations(median_ns=1_500_000, p90_ns=2_000_000, share=0.75),
    parts={
        "schedule": Durations(median_ns=50_000, p90_ns=90_000, share=0.24),
        "no_work": Durations(median_ns=0, p90_ns=10**9),
        "loop": Durations(median_ns=5_000, p90_ns=6_000, share=0.01),
    },
    unexplained_ratio=0.01,
)


def report(**members):
    values = {"path": "engine-0", "server_id": "s", "engine": "0", "num_windows": 2, "num_turns": 512}
    return IterationReport(**values | members)


def test_each_phase_is_a_table_of_its_parts():
    (table,) = iteration_tables(report(phases={Phase.DECODE: DECODE}))

    lines = printed(table).splitlines()

    assert lines[0] == "decode: 9 iterations, 1.0% unexplained"
    assert [cells(line) for line in lines[3:]] == [
        ["whole", "2.00 ms", "3.00 ms", "–"],
        ["worker", "1.50 ms", "2.00 ms", "75.0%"],
        ["schedule", "50.0 µs", "90.0 µs", "24.0%"],
        ["no_work", "0.0 µs", "1,000.0 ms", "–"],
        ["loop", "5.0 µs", "6.0 µs", "1.0%"],
    ]


def test_what_is_missing_is_said():
    ahead = PhaseIterations(num=9, total=WHOLE, worker=WHOLE)

    assert list(iteration_lines(report(phases={Phase.DECODE: DECODE}, thread_cpu_ratio=0.5))) == [
        "engine-0",
        "server s, engine 0: 512 turns of its loop in 2 windows",
        "its thread had a CPU for at most 50.0% of the time it waited for nothing",
    ]
    assert list(iteration_lines(report(num_unjoined=3, num_windows=1, thread_cpu_ratio=1.0)))[1:] == [
        "server s, engine 0: 512 turns of its loop in 1 window",
        "note: of 3 steps no worker's times came back; no iteration spans one",
        "note: no two consecutive steps are in it",
    ]
    assert list(iteration_lines(report(phases={Phase.DECODE: ahead})))[2:] == [
        "note: the engine works a step ahead, and its device does not tell what it waited for"
    ]
