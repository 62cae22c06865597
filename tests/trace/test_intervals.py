"""Unions and partitions against the `portion` library, and their edges by hand."""

import numpy as np
import portion
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import trials

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.trace.intervals import Busy, Partition, union_by_group

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)).map(lambda s: (s[0], s[0] + s[1])), max_size=12)
INSTANTS = st.lists(st.integers(0, 60), min_size=1, max_size=8)


def union(spans):
    return portion.Interval(*(portion.closedopen(start, end) for start, end in spans))


def length(interval):
    return sum(piece.upper - piece.lower for piece in interval if not piece.empty)


def columns(spans):
    array = np.array(spans, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


@trials(150)
@given(spans=SPANS, groups=st.lists(st.integers(-1, 3), min_size=12, max_size=12), base=st.sampled_from((0, 2**62)))
def test_union_by_group_is_the_length_of_each_groups_union(spans, groups, base):
    start, end = columns(spans)
    group = np.array(groups[: len(spans)], dtype=np.intp)

    got = union_by_group(group, start + base, end + base, 4)

    members = [[span for span, own in zip(spans, groups, strict=False) if own == number] for number in range(4)]
    assert got.tolist() == [length(union(spans)) for spans in members]


@trials(150)
@given(spans=SPANS, instants=INSTANTS)
def test_busy_is_the_union_and_tells_how_much_of_it_lies_before_an_instant(spans, instants):
    busy = Busy.of(*columns(spans))

    assert busy.until(np.array(instants)).tolist() == [
        length(union(spans) & portion.closedopen(-1, instant)) for instant in instants
    ]


@trials(150)
@given(
    covers=st.lists(SPANS, min_size=2, max_size=4), windows=st.lists(st.tuples(*[st.integers(0, 60)] * 2), max_size=6)
)
def test_every_instant_belongs_to_the_highest_class_that_covers_it(covers, windows):
    partition = Partition.of([columns(spans) for spans in covers])

    got = partition.between(*columns(windows))

    for number, (start, end) in enumerate(windows):
        left = portion.closedopen(start, end) if start < end else portion.empty()
        want = []
        for spans in reversed(covers):
            want.insert(0, length(left & union(spans)))
            left -= union(spans)
        assert got[:, number].tolist() == [length(left), *want]


@trials(150)
@given(covers=st.lists(SPANS, min_size=2, max_size=2), at=st.integers(0, 60), share=st.integers(0, 100))
def test_back_from_finds_the_shortest_stretch_that_holds_so_much_of_a_class(covers, at, share):
    partition = Partition.of([columns(spans) for spans in covers])
    t = np.array([at])
    amount = partition.until(t)[1] * share // 100

    begin = partition.back_from(t, 1, amount)

    assert partition.between(begin, t)[1].tolist() == amount.tolist()
    if amount[0] > 0:
        assert partition.between(begin + 1, t)[1][0] == amount[0] - 1


def test_stretches_that_touch_are_one_and_the_first_row_opens_each():
    busy = Busy.of(np.array([50, 10, 0, 10]), np.array([60, 20, 10, 12]))

    assert (busy.start_ns.tolist(), busy.end_ns.tolist(), busy.first.tolist()) == ([0, 50], [20, 60], [2, 0])


def test_intervals_of_no_length_are_stretches_of_no_length():
    busy = Busy.of(np.array([5, 9]), np.array([5, 9]))

    assert (busy.start_ns.tolist(), busy.end_ns.tolist()) == ([5, 9], [5, 9])
    assert busy.until(np.array([4, 5, 7, 9, 20])).tolist() == [0, 0, 0, 0, 0]


def test_nothing_covers_nothing():
    nothing = np.empty(0, dtype=np.int64)

    assert Busy.of(nothing, nothing).until(np.array([3])).tolist() == [0]
    assert Partition.of([(nothing, nothing)]).until(np.array([3])).tolist() == [[3], [0]]
    assert union_by_group(np.empty(0, dtype=np.intp), nothing, nothing, 2).tolist() == [0, 0]


def test_short_groups_decades_apart_fit():
    start = np.arange(1000, dtype=np.int64) * 2**52

    assert union_by_group(np.arange(1000), start, start + 5, 1000).tolist() == [5] * 1000


def test_groups_too_long_for_64_bits_are_refused():
    group = np.arange(4)

    with pytest.raises(TraceFormatError, match="do not fit 64 bits"):
        union_by_group(group, np.zeros(4, dtype=np.int64), np.full(4, 2**61), 4)
