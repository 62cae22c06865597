"""What an engine that waits for requests waits for, instant by instant."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trials import trials

from taxbreak_vllm.iterations.account import Turns
from taxbreak_vllm.iterations.rows import Column
from taxbreak_vllm.iterations.spans import covered
from taxbreak_vllm.iterations.waits import Arrivals, cut_waits
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.frontend import NO_ENGINE, UNKNOWN_ENGINE
from tests.iterations.test_account import SPANS, US, Clock, worker_elsewhere

END = 40
FRONTEND, IPC_INPUT, NO_WORK = Between.FRONTEND, Between.IPC_INPUT, Between.NO_WORK


def slots(*requests):
    """Requests as an arrivals file has them: arrived, sent, engine."""
    return np.array([(*request, 0) for request in requests], dtype=np.int64).reshape(-1, 4)


def spans(*pairs):
    starts, ends = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return starts, ends


def labelled(waits, requests, engine=0):
    """The label of each instant up to END, as `cut_waits` cuts them."""
    labels = [None] * END
    for label, (starts, ends) in cut_waits(spans(*waits), Arrivals.of(slots(*requests), engine)).items():
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            for at in range(start, end):
                assert labels[at] is None, f"{at} has two labels"
                labels[at] = label
    return labels


def brute_force(waits, requests, engine):
    """The same by the words of the definition, for each instant by itself."""
    labels = [None] * END
    for begin, end in waits:
        for at in range(begin, end):
            labels[at] = NO_WORK
            for arrived, sent, of in requests:
                if arrived <= 0 or 0 < sent < arrived or of not in (engine, UNKNOWN_ENGINE):
                    continue
                if arrived <= at and (sent == 0 or at < sent):
                    labels[at] = FRONTEND
                elif begin <= sent <= at and sent > 0 and of == engine and labels[at] is NO_WORK:
                    labels[at] = IPC_INPUT
    return labels


def runs(labels):
    return {label: labels.count(label) for label in (FRONTEND, IPC_INPUT, NO_WORK)}


def test_a_wait_is_cut_where_the_request_that_ends_it_arrived_and_was_sent():
    assert runs(labelled([(10, 30)], [(15, 24, 0)])) == {NO_WORK: 5, FRONTEND: 9, IPC_INPUT: 6}


def test_a_request_still_on_its_way_may_be_any_engines():
    assert runs(labelled([(10, 30)], [(15, 0, UNKNOWN_ENGINE)])) == {NO_WORK: 5, FRONTEND: 15, IPC_INPUT: 0}


@pytest.mark.parametrize("engine", [1, NO_ENGINE])
def test_a_request_of_another_engine_or_of_none_is_no_reason(engine):
    assert runs(labelled([(10, 30)], [(15, 24, engine)])) == {NO_WORK: 20, FRONTEND: 0, IPC_INPUT: 0}


def test_one_on_its_way_through_an_api_server_goes_before_one_that_was_sent():
    assert runs(labelled([(10, 30)], [(11, 12, 0), (20, 25, 0)])) == {NO_WORK: 1, FRONTEND: 6, IPC_INPUT: 13}


def test_what_was_sent_before_the_wait_has_come_already():
    assert runs(labelled([(10, 20), (25, 30)], [(1, 5, 0), (6, 12, 0)])) == {NO_WORK: 5, FRONTEND: 2, IPC_INPUT: 8}


@pytest.mark.parametrize("torn", [(20, 12, 0), (-5, 12, 0), (0, 12, 0), (-(2**63), 2**63 - 1, 7), (2**62, 0, 0)])
def test_a_slot_that_cannot_be_is_passed_over(torn):
    assert runs(labelled([(10, 30)], [torn])) == {NO_WORK: 20, FRONTEND: 0, IPC_INPUT: 0}


times = st.integers(0, END)
requests = st.lists(st.tuples(times, times, st.sampled_from([0, 1, UNKNOWN_ENGINE, NO_ENGINE])), max_size=8)


@trials(400)
@given(edges=st.sets(st.integers(0, END), max_size=8).map(sorted), requests=requests, engine=st.sampled_from([0, 1]))
@example(edges=[10, 20, 20, 30], requests=[(5, 20, 0)], engine=0)
@example(edges=[10, 20, 20, 30], requests=[(12, 14, 0), (22, 0, UNKNOWN_ENGINE)], engine=0)
def test_every_instant_of_every_wait_has_the_label_that_its_definition_gives_it(edges, requests, engine):
    waits = list(zip(edges[::2], edges[1::2], strict=False))

    assert labelled(waits, requests, engine) == brute_force(waits, requests, engine)


def test_an_iteration_with_a_wait_is_cut_and_still_closes():
    clock = Clock()
    worker_elsewhere(clock, SPANS)
    idle = clock.now + SPANS["input"]
    worker_elsewhere(clock, SPANS | {"idle": 10_000 * US})
    rows = clock.table()
    arrivals = Arrivals.of(slots((idle + 6000 * US, idle + 9000 * US, 0), (idle, idle + 100 * US, 1)), 0)

    found, plain = Turns(rows, arrivals).iterations(), Turns(rows).iterations()

    assert rows[1, Column.IDLE0] == idle
    assert {label: int(found.parts_ns[label][0]) for label in (NO_WORK, FRONTEND, IPC_INPUT)} == {
        NO_WORK: 6000 * US,
        FRONTEND: 3000 * US,
        IPC_INPUT: 1000 * US,
    }
    assert plain.parts_ns[NO_WORK].tolist() == [10_000 * US]
    assert (sum(found.parts_ns.values()) + found.worker_ns == found.total_ns).all()
    cut = {NO_WORK, FRONTEND, IPC_INPUT}
    assert all((found.parts_ns[label] == plain.parts_ns[label]).all() for label in found.parts_ns if label not in cut)
    busy = [turns.busy_ns(int(rows[0, Column.INPUT0]), clock.now) for turns in (Turns(rows, arrivals), Turns(rows))]
    assert busy[0] == busy[1]
    assert busy[0][EnginePart.INPUT] == 3 * 3 * US


@trials(60)
@given(data=st.data())
def test_whatever_is_on_its_way_iterations_close_and_only_waits_are_cut(data):
    clock = Clock()
    for _ in range(data.draw(st.integers(2, 6))):
        worker_elsewhere(clock, SPANS | {"idle": data.draw(st.integers(0, 5000 * US))})
    rows = clock.table()
    instants = st.integers(int(rows[0, Column.INPUT0]), clock.now)
    found = data.draw(st.lists(st.tuples(instants, instants | st.just(0), st.integers(-2, 1)), max_size=8))

    cut = Turns(rows, Arrivals.of(slots(*found), 0)).iterations()
    plain = Turns(rows).iterations()

    assert (sum(cut.parts_ns.values()) + cut.worker_ns == cut.total_ns).all()
    assert min(int(parts.min()) for parts in cut.parts_ns.values()) >= 0
    assert (sum(cut.parts_ns[cause] for cause in (NO_WORK, FRONTEND, IPC_INPUT)) == plain.parts_ns[NO_WORK]).all()


def test_spans_of_no_length_cover_nothing():
    found = cut_waits(spans((10, 30)), Arrivals.of(slots((10, 10, 0)), 0))

    assert {label: int(covered(own, np.array([100]))[0]) for label, own in found.items()} == {
        NO_WORK: 0,
        FRONTEND: 0,
        IPC_INPUT: 20,
    }
