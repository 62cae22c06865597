"""Requests of an API server are found again among those of its engine, and what one side alone kept is of neither."""

import numpy as np

from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.rows import Added
from taxbreak_vllm.workload.pairing import paired

MS = 10**6


def added(number, at_ns, prompt):
    return Added(number, at_ns, at_ns - MS, prompt, 10, 0, 0, True, (), ())


def served(*requests):
    rows = np.zeros((len(requests), len(Column)), dtype=np.int64)
    rows[:, [Column.QUEUED, Column.NUM_PROMPT_TOKENS]] = requests
    return rows


def test_each_is_found_though_many_come_at_once_and_in_another_order():
    draw = np.random.default_rng(5)
    at = 10**12 + np.sort(draw.integers(0, 2000 * MS, 500))
    at[100:160] = at[100]  # as many as one turn takes in
    prompts = draw.integers(1, 400, 500)
    rows = served(*zip((at + draw.integers(0, 100_000, 500)).tolist(), prompts.tolist(), strict=True))

    order = draw.permutation(500)
    found = paired([added(number, int(at[number]), int(prompts[number])) for number in range(500)], rows[order])

    assert sorted(found) == list(range(500))
    assert sorted(found.values()) == list(range(500))
    off = [number for number, place in found.items() if order[place] != number]
    assert all(prompts[number] == prompts[order[found[number]]] for number in off)  # these are not to be told apart
    assert len(off) < 20


def test_what_one_side_alone_kept_is_not_paired():
    engine = [added(0, 10**12, 7), added(1, 10**12 + 50 * MS, 8), added(2, 10**12 + 60 * MS, 9)]

    rows = served((10**12 + 50 * MS + 30_000, 8), (10**12 + 60 * MS + 30_000, 10), (10**12 + 90 * MS, 9), (0, 7))

    assert paired(engine, rows) == {1: 0}


def test_two_alike_go_to_the_nearer():
    engine = [added(0, 10**12, 7), added(1, 10**12 + MS, 7)]

    assert paired(engine, served((10**12 + MS + 10_000, 7), (10**12 + 10_000, 7))) == {1: 0, 0: 1}
