"""An engine in virtual time, by a scheduler that takes whoever comes: every instant can be told by hand."""

import weakref
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.model.workload import Fit, FrontendFit, Stalls
from taxbreak_vllm.workload.cost import StepCost
from taxbreak_vllm.workload.frontend import FrontendQueue
from taxbreak_vllm.workload.requests import Request
from taxbreak_vllm.workload.simulate import COLUMNS, serve

MS = 1e6
AT, FIRST, LAST, SENT = (COLUMNS.index(name) for name in ("at", "first", "last", "sent"))


class Scheduler:
    """Takes all requests there are; one gets a token of each step. With `ahead`, of each that is under way too."""

    num_preempted = 0
    kv_peak_ratio = 0.5
    counts = (0, 0)
    is_short_of_blocks = False

    def __init__(self, *, refuses=False):
        self.left = {}
        self.chosen = deque()
        self.refuses = refuses

    @property
    def has_requests(self):
        return any(self.left.values())

    def add(self, number, plan, **_members):
        self.left[number] = plan.num_outputs

    def schedule(self):
        ids = [] if self.refuses else [number for number, left in self.left.items() if left > 0]
        for number in ids:
            self.left[number] -= 1
        self.counts = (len(ids), 0)
        cached = SimpleNamespace(
            req_ids=[str(number) for number in ids],
            num_computed_tokens=[0] * len(ids),
            num_output_tokens=[1] * len(ids),
            resumed_req_ids=set(),
        )
        return SimpleNamespace(
            outputs=[(number, self.left[number] == 0) for number in ids],
            num_scheduled_tokens={str(number): 1 for number in ids},
            total_num_scheduled_tokens=len(ids),
            scheduled_new_reqs=[],
            scheduled_cached_reqs=cached,
            scheduled_spec_decode_tokens={},
        )

    def update(self, scheduled):
        return scheduled.outputs


@dataclass(frozen=True)
class Watched(Request):
    """One whose end is seen."""


def cost(before, device, after, *, per_request=0.0):
    beta = [[before, 0, 0, 0, 0], [device, 0, 0, per_request, 0], [after, 0, 0, 0, 0]]
    fit = Fit(
        num_steps=0, terms=(), seen={}, median_error_ratio=0, stalls=Stalls(num=0, time_ratio=0, median_ns=0, max_ns=0)
    )
    return StepCost({"none": beta}, np.zeros((2, 4), dtype=np.int64), {False: [], True: []}, [], fit)


def served(requests, costs, *, frontend=None, **options):
    frontends = [FrontendQueue(frontend)]
    return serve(requests, options.pop("scheduler", Scheduler()), costs, None, frontends,
                 graph_mode_of=lambda is_prefill, size: "none", **options)  # fmt: skip


def period_ns(run, num_steps):
    return (run.table[0, LAST] - run.table[0, FIRST]) / (num_steps - 1)


def request(number, at_ms, num_outputs):
    return Request(number, at_ms * MS, num_prompt_tokens=1, num_outputs=num_outputs, max_tokens=num_outputs)


def test_a_request_alone_takes_its_steps_one_after_another():
    run = served([request(0, 10, 3)], cost(1 * MS, 5 * MS, 2 * MS))

    assert run.table.tolist() == [[10 * MS, 18 * MS, 34 * MS, 34 * MS, 3]]
    assert (run.host_ns, run.device_ns, run.num_steps) == (9 * MS, 15 * MS, 3)


def test_one_that_comes_in_the_middle_of_a_step_waits_for_its_end_and_makes_the_next_longer():
    run = served([request(0, 0, 3), request(1, 2, 1)], cost(1 * MS, 5 * MS, 0, per_request=1 * MS))

    second, first = run.table.tolist()  # as they were done
    assert first[:3] == [0, 7 * MS, 22 * MS]
    assert second[:3] == [2 * MS, 15 * MS, 15 * MS]


@pytest.mark.parametrize(("host", "device", "period"), [(2, 5, 5), (6, 5, 6)])
def test_what_is_scheduled_ahead_hides_the_shorter_of_host_and_device(host, device, period):
    steps = 50
    run = served([request(0, 0, steps)], cost(host / 2 * MS, device * MS, host / 2 * MS), depth=2)

    assert period_ns(run, steps) == pytest.approx(period * MS, rel=0.05)
    behind = served([request(0, 0, steps)], cost(host / 2 * MS, device * MS, host / 2 * MS))
    assert period_ns(behind, steps) == (host + device) * MS


def test_parts_that_take_other_times_are_scaled_apart():
    run = served([request(0, 0, 1)], cost(1 * MS, 5 * MS, 1 * MS), host=3, device=(0.2, 9.0))

    assert run.table[0, FIRST] == (3 + 1 + 3) * MS


@pytest.mark.parametrize(("added_ms", "first_ms"), [(2, 9), (-0.5, 6.5), (-1.5, 5.5), (-9, 5)])
def test_what_is_taken_off_the_host_is_at_most_all_of_it(added_ms, first_ms):
    run = served([request(0, 0, 1)], cost(1 * MS, 5 * MS, 1 * MS), host_added_ns=added_ms * MS)

    assert run.table[0, FIRST] == first_ms * MS


def test_an_api_server_does_one_thing_after_another():
    frontend = FrontendFit(num_requests=0, request_ns=int(4 * MS), output_ns=int(1 * MS), end_ns=int(2 * MS))
    run = served([request(0, 0, 1), request(1, 0, 1)], cost(0, 3 * MS, 0), frontend=frontend)

    first, second = run.table[:, [FIRST, SENT]].tolist()
    # in at 4 and 8, a step from 4 to 7; the first output waits until 8 for the second request's way in
    assert first == [9 * MS, 11 * MS]
    assert second == [12 * MS, 14 * MS]
    assert run.frontend_ns == 14 * MS


def test_a_request_in_the_middle_of_a_step_goes_in_before_the_outputs_at_its_end():
    frontend = FrontendFit(num_requests=0, request_ns=int(1 * MS), output_ns=int(2 * MS))
    run = served([request(0, 0, 2), request(1, 3, 1)], cost(0, 5 * MS, 0), frontend=frontend)

    # steps from 1 to 6 and on to 11: the second request is sent at 4 and makes the step at 6, not the one at 11
    assert run.table[:, [FIRST, LAST]].tolist() == [[8 * MS, 13 * MS], [15 * MS, 15 * MS]]


def test_a_message_is_taken_apart_before_its_outputs_are_sent_and_its_way_holds_up_no_other():
    frontend = FrontendFit(
        num_requests=0, to_engine_ns=int(4 * MS), from_engine_ns=int(3 * MS), output_ns=int(1 * MS), send_ns=int(2 * MS)
    )
    run = served([request(0, 0, 1), request(1, 0, 1)], cost(0, 6 * MS, 0), frontend=frontend)

    # both at the engine at 4, their step until 10, their message there at 13
    assert run.table[:, [FIRST, SENT]].tolist() == [[14 * MS, 17 * MS], [15 * MS, 19 * MS]]


def test_a_request_that_nothing_has_room_for_ends_it():
    with pytest.raises(WorkloadError, match="waits for ever"):
        served([request(0, 0, 1)], cost(1, 1, 1), scheduler=Scheduler(refuses=True))


def test_requests_are_looked_at_as_they_come_and_what_is_left_of_them_is_five_numbers_each():
    alive = weakref.WeakSet()
    most = 0

    def coming():
        nonlocal most
        for number in range(500):
            made = Watched(number, number * 10 * MS, num_prompt_tokens=1, num_outputs=2, max_tokens=2)
            alive.add(made)
            most = max(most, len(alive))
            yield made

    run = served(coming(), cost(1 * MS, 1 * MS, 1 * MS))

    assert len(run.table) == 500
    assert most < 10


def test_what_requests_time_goes_to_adds_up_to_all_of_it():
    frontend = FrontendFit(num_requests=0, request_ns=int(1 * MS), output_ns=0, end_ns=int(2 * MS))
    run = served([request(0, 0, 2), request(1, 3, 1)], cost(1 * MS, 5 * MS, 2 * MS), frontend=frontend)

    # the first: 1 ms in, two steps of 3 + 5 ms, 2 ms out; the second comes during the first step and waits 5 ms for its
    # end, is in the second step, and goes out behind the first
    spent = run.spent
    assert (spent.host_ns, spent.device_ns, spent.kv_ns) == (9 * MS, 15 * MS, 0)
    assert spent.frontend_ns == (1 + 2 + 1 + 4) * MS
    assert (run.table[:, SENT] - run.table[:, AT]).sum() - spent.frontend_ns - 24 * MS == 5 * MS


def test_those_that_wait_while_blocks_are_short_wait_for_the_kv_cache():
    class Short(Scheduler):
        is_short_of_blocks = True

        def schedule(self):
            scheduled = super().schedule()
            self.counts = (1, 3)
            return scheduled

    run = served([request(0, 0, 1)], cost(1 * MS, 5 * MS, 0), scheduler=Short())

    assert (run.spent.kv_ns, run.spent.host_ns, run.spent.device_ns) == (18 * MS, 1 * MS, 5 * MS)
