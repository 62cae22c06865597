"""A request's stages, from stamps that can be checked by eye."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.model.frontend import DELIVERY, QUEUED, SPAN_BUCKETS_NS, SpanHistogram, Stage
from taxbreak_vllm.stages.account import account, added, delivery
from taxbreak_vllm.stages.rows import Column

STREAMED = {
    "ARRIVED": 1000,
    "BODY": 1010,
    "RENDER0": 1030,
    "RENDER1": 1060,
    "SUBMIT0": 1065,
    "SENT": 1100,
    "QUEUED": 1150,
    "SCHEDULED": 1210,
    "FIRST_TOKEN": 1280,
    "LAST_TOKEN": 1360,
    "FIRST_TAKEN": 1289,
    "FIRST_PUT": 1292,
    "FIRST_SEND0": 1297,
    "FIRST_SEND1": 1299,
    "LAST_TAKEN": 1450,
    "LAST_PUT": 1550,
    "LAST_SEND0": 1660,
    "END": 1780,
    "STATUS": 200,
    "IS_STREAMED": 1,
}
WHOLE = STREAMED | {
    "IS_STREAMED": 0,
    "FIRST_TAKEN": 1450,
    "FIRST_PUT": 1550,
    "FIRST_SEND0": 1660,
    "FIRST_SEND1": 1780,
}
SPANS = dict(zip(Stage, (10, 20, 30, 40, 50, 60, 0, 0, 0, 0, 70, 80, 90, 100, 110, 120), strict=True))


def _rows(*requests):
    rows = np.zeros((len(requests), len(Column)), dtype=np.int64)
    for row, stamps in zip(rows, requests, strict=True):
        for name, value in stamps.items():
            row[Column[name]] = value
    return rows


def _stages(stamps):
    found = account(_rows(stamps))
    assert (len(found.rows), found.num_failed, found.num_unknown) == (1, 0, 0)
    assert sum(found.stages_ns.values()) == found.total_ns
    return {stage: int(spans[0]) for stage, spans in found.stages_ns.items()}


def _is(stamps):
    found = account(_rows(stamps))
    return {"known": len(found.rows), "failed": found.num_failed, "unknown": found.num_unknown}


KNOWN, FAILED, UNKNOWN = (
    {name: int(name == it) for name in ("known", "failed", "unknown")} for it in ("known", "failed", "unknown")
)


@pytest.mark.parametrize("stamps", [STREAMED, WHOLE])
def test_each_stage_lies_between_two_stamps(stamps):
    assert _stages(stamps) == SPANS


def test_the_first_output_of_a_stream_has_a_way_of_its_own():
    found = account(_rows(STREAMED))

    assert found.ttft_ns == [299]
    assert {stage: int(spans[0]) for stage, spans in found.first_ns.items()} == dict(
        zip(DELIVERY, (9, 3, 5, 2), strict=True)
    )


def test_the_only_output_of_a_whole_answer_is_its_first_and_its_last():
    found = account(_rows(WHOLE))

    assert found.ttft_ns == found.total_ns == [780]
    assert {stage: int(spans[0]) for stage, spans in found.first_ns.items()} == {s: SPANS[s] for s in DELIVERY}


def test_a_request_of_one_token_has_no_decode():
    stages = _stages(WHOLE | {"FIRST_TOKEN": 1360})

    assert stages[Stage.PREFILL] == 150
    assert stages[Stage.DECODE] == 0


WAITS = {"WAIT_KV": 5, "WAIT_ENCODER": 7, "WAIT_GRAMMAR": 11, "WAIT_REMOTE_KV": 13}


def test_what_a_request_waited_for_is_taken_off_its_time_in_the_queue():
    stages = _stages(STREAMED | WAITS)

    assert [stages[stage] for stage in QUEUED] == [60 - 36, 5, 7, 11, 13]
    assert {stage: ns for stage, ns in stages.items() if stage not in QUEUED} == {
        stage: ns for stage, ns in SPANS.items() if stage not in QUEUED
    }


@pytest.mark.parametrize("waits", [dict.fromkeys(WAITS, -1), WAITS | {"WAIT_KV": 30}], ids=["untold", "too long"])
def test_a_queue_whose_waits_are_not_known_is_undivided_and_they_are_no_zero(waits):
    told, untold = STREAMED | WAITS, STREAMED | waits

    found = account(_rows(told, untold))

    assert found.stages_ns[Stage.QUEUE].tolist() == [24, 60]
    assert found.is_divided.tolist() == [True, False]
    assert (sum(found.stages_ns.values()) == found.total_ns).all()


def test_a_prompt_of_tokens_is_rendered_by_nobody():
    stages = _stages(STREAMED | {"RENDER0": 0, "RENDER1": 0})

    assert (stages[Stage.PARSE], stages[Stage.RENDER], stages[Stage.SUBMIT]) == (55, 0, 35)


def test_a_sending_stamped_after_the_engine_had_it_ended_there():
    stages = _stages(STREAMED | {"SENT": 1170})

    assert (stages[Stage.SUBMIT], stages[Stage.IPC_INPUT]) == (90, 0)


@pytest.mark.parametrize("missing", ["QUEUED", "SCHEDULED", "FIRST_TOKEN", "LAST_TOKEN", "BODY", "SENT", "SUBMIT0"])
def test_a_request_without_a_stamp_is_unknown(missing):
    assert _is(STREAMED | {missing: 0, "RENDER0": 0, "RENDER1": 0}) == UNKNOWN


@pytest.mark.parametrize("ahead_ns", [-(10**12), -200, 200, 10**12])
def test_stamps_of_another_machines_clock_are_unknown(ahead_ns):
    names = ("QUEUED", "SCHEDULED", "FIRST_TOKEN", "LAST_TOKEN")

    assert _is(STREAMED | {name: STREAMED[name] + ahead_ns for name in names}) == UNKNOWN


def test_a_request_that_goes_on_behind_its_answer_is_unknown():
    """A response in the background is answered before its first token."""
    assert _is(STREAMED | {"LAST_PUT": 0, "LAST_TAKEN": 0, "LAST_SEND0": 0, "FIRST_PUT": 0}) == UNKNOWN


@pytest.mark.parametrize(
    "change",
    [{"END": 0}, {"LAST_TAKEN": 0}, {"STATUS": 500, "LAST_PUT": 0}, {"LAST_PUT": 0, "END": 0, "QUEUED": 0}],
    ids=["its client left", "broken off by the server", "refused", "left early"],
)
def test_a_request_that_does_not_come_to_its_end_has_failed(change):
    assert _is(STREAMED | change) == FAILED


def test_the_known_are_told_from_the_rest():
    found = account(_rows(STREAMED, STREAMED | {"END": 0}, STREAMED | {"QUEUED": 0}, WHOLE))

    assert (len(found.rows), found.num_failed, found.num_unknown) == (2, 1, 1)
    assert found.total_ns.tolist() == [780, 780]


def test_nothing_comes_of_nothing():
    found = account(_rows())

    assert (len(found.rows), found.num_failed, found.num_unknown) == (0, 0, 0)


stamps = st.lists(st.integers(0, 60), min_size=len(Column), max_size=len(Column))


@given(st.lists(stamps, max_size=20))
def test_whatever_the_stamps_known_stages_sum_to_the_total_and_every_request_is_counted_once(drawn):
    rows = np.array(drawn, dtype=np.int64).reshape(-1, len(Column))

    found = account(rows)

    assert len(found.rows) + found.num_failed + found.num_unknown == len(rows)
    assert (sum(found.stages_ns.values()) == found.total_ns).all()
    assert all((spans >= 0).all() for spans in (*found.stages_ns.values(), *found.first_ns.values()))
    assert (found.ttft_ns >= 0).all()


@given(st.lists(st.integers(1, 10**14), min_size=len(SPANS) - len(WAITS), max_size=len(SPANS) - len(WAITS)))
def test_a_request_in_order_is_cut_to_the_nanosecond(spans_ns):
    cuts = (10**15 + np.cumsum([0, *spans_ns])).tolist()
    names = [name for name, value in sorted(WHOLE.items(), key=lambda item: item[1]) if value >= 1000]
    order = ["ARRIVED", "BODY", "RENDER0", "RENDER1", "SENT", "QUEUED", "SCHEDULED", "FIRST_TOKEN", "LAST_TOKEN"]
    order += ["LAST_TAKEN", "LAST_PUT", "LAST_SEND0", "END"]
    stamps = dict(zip(order, cuts, strict=True)) | {"STATUS": 200, "IS_STREAMED": 0}
    stamps |= {"FIRST_SEND0": stamps["LAST_SEND0"], "FIRST_SEND1": stamps["END"]}

    assert set(order) < set(names)
    assert [ns for stage, ns in _stages(stamps).items() if stage not in QUEUED[1:]] == spans_ns


def test_the_way_of_each_output_is_cut():
    found = delivery(
        np.array([[10, 12, 15, 19, 24], [10, 9, 15, 19, 24], [0, 12, 15, 19, 24], [1, 10**14, *[10**14] * 3]])
    )

    assert {stage: spans.tolist() for stage, spans in found.items()} == dict(
        zip(DELIVERY, ([2], [3], [4], [5]), strict=True)
    )


def test_a_duration_counts_in_the_first_bucket_that_is_not_below_it():
    first, second = SPAN_BUCKETS_NS[:2]

    found = added(added(SpanHistogram(), np.array([0, first, first + 1])), np.array([second, 10**12]))

    assert (found.num, found.sum_ns) == (5, 2 * first + 1 + second + 10**12)
    assert found.bucket_counts == (2, 2, *[0] * (len(SPAN_BUCKETS_NS) - 2), 1)
    assert added(found, np.array([], dtype=np.int64)) is found
