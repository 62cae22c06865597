from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.serving.sampling.picks import NUM_COLD_STEPS, Picks

rates = st.integers(min_value=2, max_value=5000)
levels = st.integers(min_value=-8, max_value=10)


def _first_picks(picks, num_picks, *, level=0, first=0):
    found = []
    for _ in range(num_picks):
        found.append(picks.next(found[-1] + 1 if found else first, level))
    return found


@pytest.mark.parametrize(("sample_every", "level"), [(2, 0), (7, 0), (1000, 0), (1000, 3), (1000, -3)])
def test_one_step_in_so_many_is_picked_once_a_kind_is_no_longer_young(sample_every, level):
    length = sample_every * 2**level

    found = _first_picks(Picks("seed", sample_every), 200, level=level, first=int(length))

    assert [pick // length for pick in found] == list(range(1, 201))


def test_the_first_picks_come_early_and_none_among_the_cold_steps():
    found = _first_picks(Picks("seed", 1000), 7)

    blocks = [(31, 63), (62, 125), (125, 250), (250, 500), (500, 1000), (1000, 2000), (2000, 3000)]
    assert all(start <= pick < end for pick, (start, end) in zip(found, blocks, strict=True))


@given(rates, levels, st.text(max_size=5))
def test_no_cold_step_is_picked(sample_every, level, seed):
    first = Picks(seed, sample_every).next(0, level)

    assert first >= min(NUM_COLD_STEPS, sample_every)


@given(rates, levels, st.integers(min_value=0, max_value=6), st.integers(min_value=0, max_value=10**6))
def test_who_samples_less_picks_among_what_others_pick(sample_every, level, slower, first):
    picks = Picks("seed", sample_every)

    pick = picks.next(first, level + slower)

    assert picks.next(pick, level) == pick


@given(rates, levels, st.lists(st.integers(min_value=0, max_value=10**6), min_size=2, max_size=2).map(sorted))
def test_wherever_it_is_asked_the_next_pick_is_the_same(sample_every, level, span):
    picks, (start, end) = Picks("seed", sample_every), span

    pick = picks.next(start, level)

    assert pick >= start
    assert picks.next(min(end, pick), level) == pick


def test_a_workload_as_periodic_as_the_sampling_is_seen_in_all_its_parts():
    found = _first_picks(Picks("seed", 100), 2000)

    seen = [0] * 4
    for pick in found:
        seen[pick % 100 // 25] += 1
    assert all(400 < num_picks < 600 for num_picks in seen)
    assert len({after - before for before, after in pairwise(found)}) > 100


def test_another_seed_picks_other_steps():
    assert _first_picks(Picks("a", 100), 20) != _first_picks(Picks("b", 100), 20)
