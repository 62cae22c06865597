"""What a scheduler is told and chooses is noted in order, without names or content, and never in vLLM's way."""

import weakref
from enum import IntEnum
from types import SimpleNamespace

import pytest

from taxbreak_vllm.serving.engine import traffic as module
from taxbreak_vllm.serving.engine.traffic import STEP, UPDATE, Lines, Traffic
from taxbreak_vllm.serving.worker_times import NUMBER
from taxbreak_vllm.traffic.rows import Aborted, Added, Ended, Lost, Reset, Scheduled, Updated


class Reason(IntEnum):
    """As vLLM's FinishReason: the first of them is false."""

    STOP = 0

    def __str__(self):
        return self.name


class Request(SimpleNamespace):
    """One that a weak reference can be had of."""


class Scheduler:
    """Takes note of what reaches it."""

    def __init__(self):
        self.calls = []

    def add_request(self, request):
        self.calls.append(("add", request.request_id))
        return "added"

    def finish_requests(self, request_ids, status):
        self.calls.append(("finish", None if request_ids is None else list(request_ids), status))
        return "finished"

    def reset_prefix_cache(self, reset_running_requests=False):
        self.calls.append(("reset", reset_running_requests))
        return True


def request(name="cmpl-secret-0-1a2b3c4d", *, hashes=(b"one", b"two"), **members):
    plain = {
        "request_id": name,
        "arrival_time": 1.0,
        "num_prompt_tokens": 8,
        "max_tokens": 16,
        "priority": 0,
        "lora_request": None,
        "pooling_params": None,
        "structured_output_request": None,
        "block_hashes": list(hashes),
        "num_output_tokens": 3,
        "num_preemptions": 1,
        "get_finished_reason": lambda: Reason.STOP,
    }
    return Request(**plain | members)


def step(number, tokens=None, *, new=(), finished=()):
    scheduled = SimpleNamespace(
        finished_req_ids=set(finished),
        scheduled_new_reqs=[SimpleNamespace(req_id=name, num_computed_tokens=num) for name, num in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[], num_computed_tokens=[], num_output_tokens=[], resumed_req_ids=set()
        ),
        scheduled_spec_decode_tokens={},
        num_scheduled_tokens=tokens or {},
        total_num_scheduled_tokens=sum((tokens or {}).values()),
        preempted_req_ids=None,
    )
    setattr(scheduled, NUMBER, number)
    return scheduled


@pytest.fixture
def scheduler():
    return Scheduler()


@pytest.fixture
def traffic(scheduler):
    traffic = Traffic(scheduler, now=lambda: 5)
    traffic.attach()
    return traffic


def lines_of(traffic, *, keeps_hashes=True):
    return Lines(traffic, hash_block_size=4, keeps_hashes=keeps_hashes)


def test_events_are_told_in_order_and_by_number(scheduler, traffic):
    one, two = request("cmpl-one"), request("cmpl-two", priority=3)
    scheduler.add_request(one)
    scheduler.add_request(two)
    traffic.note(STEP, first := step(1, {"cmpl-one": 4, "cmpl-two": 8}, new=[("cmpl-one", 4), ("cmpl-two", 0)]), False)
    scheduler.finish_requests(["cmpl-two", "cmpl-unheard-of"], "aborted")
    traffic.note(UPDATE, first, 0)
    scheduler.reset_prefix_cache()
    traffic.note(STEP, step(2, finished=["cmpl-one", "cmpl-two"]), True)

    lines = lines_of(traffic).take()

    kinds = [type(line) for line in lines]
    assert kinds == [Added, Added, Scheduled, Aborted, Updated, Reset, Ended, Ended, Scheduled]
    assert [(line.number, line.at_ns, line.num_prompt_tokens, line.priority) for line in lines[:2]] == [
        (0, 5, 8, 0),
        (1, 5, 8, 3),
    ]
    assert (lines[2].number, lines[2].prompt_tokens, lines[2].num_prefills, lines[2].context) == (1, 12, 2, 4)
    assert lines[3] == Aborted(5, [1])
    assert lines[4] == Updated(1)
    ends = {line.number: line for line in lines[6:8]}
    assert (ends[0].num_hit_tokens, ends[1].num_hit_tokens) == (4, 0)
    assert (ends[0].reason, ends[0].num_output_tokens, ends[0].num_preemptions) == ("STOP", 3, 1)
    assert lines[8].is_throttled
    assert "cmpl" not in repr(lines)


def test_the_scheduler_is_called_as_ever(scheduler, traffic):
    names = (name for name in ["cmpl-one"])

    assert scheduler.add_request(request("cmpl-one")) == "added"
    assert scheduler.finish_requests(names, "aborted") == "finished"  # read once, by the scheduler
    assert scheduler.finish_requests(None, "aborted") == "finished"
    assert scheduler.reset_prefix_cache(reset_running_requests=True)
    assert scheduler.calls == [
        ("add", "cmpl-one"),
        ("finish", ["cmpl-one"], "aborted"),
        ("finish", None, "aborted"),
        ("reset", True),
    ]
    _, unread, everything, _ = lines_of(traffic).take()
    assert unread == Reset(5, "finish_requests")
    assert everything == Aborted(5, [0])


def test_hashes_are_salted_alike_within_a_server_and_left_out_when_told(scheduler, traffic):
    def hashes(lines):
        scheduler.add_request(request(hashes=(b"system prompt", b"question", b"answer")))
        (added,) = lines.take()
        return added.hashes

    lines, other = lines_of(traffic), lines_of(traffic)
    first, again, elsewhere = hashes(lines), hashes(lines), hashes(other)

    assert len(first) == 2  # of the prompt's full blocks
    assert first == again
    assert not {*first} & {*elsewhere}
    assert hashes(lines_of(traffic, keeps_hashes=False)) == []


def test_what_a_simulation_does_not_do_is_named(scheduler, traffic):
    scheduler.add_request(request(structured_output_request=object(), mm_features=[object()]))

    (added,) = lines_of(traffic).take()

    assert added.refused == ["structured output", "multimodal inputs"]


def test_a_fault_ends_the_noting_and_nothing_else(scheduler):
    def fail():
        raise ZeroDivisionError("ours")

    traffic = Traffic(scheduler, now=fail)
    traffic.attach()

    assert scheduler.add_request(request("cmpl-one")) == "added"
    assert "ours" in traffic.fault
    traffic.note(STEP, step(1), False)
    assert list(traffic.take()) == []


def test_what_comes_too_fast_is_counted_as_lost(scheduler, traffic, monkeypatch):
    monkeypatch.setattr(module, "_MAX_EVENTS", 2)
    for number in range(5):
        traffic.note(UPDATE, step(number), 0)
    lines = lines_of(traffic)

    assert lines.take() == [Updated(0), Updated(1), Lost(3)]
    assert lines.take() == []


def test_a_request_whose_end_was_lost_is_not_kept(scheduler, traffic, monkeypatch):
    lines = lines_of(traffic)
    ended, running = request("a"), request("b", get_finished_reason=lambda: None)
    for each in ended, running:
        scheduler.add_request(each)
    lines.take()
    is_kept, is_other_kept = weakref.ref(ended), weakref.ref(running)
    del ended, running, each
    monkeypatch.setattr(module, "_MAX_EVENTS", 1)
    traffic.note(UPDATE, step(1), 0)
    traffic.note(STEP, step(2, finished=["a"]), False)

    assert lines.take() == [Updated(1), Lost(1)]
    assert is_kept() is None
    assert is_other_kept() is not None


def test_a_scheduler_of_another_make_is_left_alone():
    other = SimpleNamespace(add_request=lambda request: "added")

    with pytest.raises(AttributeError):
        Traffic(other).attach()
    assert other.add_request(None) == "added"
