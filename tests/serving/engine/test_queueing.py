"""What a request waited for is told to the nanosecond, from a scheduler that refuses as vLLM's does, on a clock."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from taxbreak_vllm.serving.engine.queueing import HEADER, QueueWaits

KV, ENCODER, GRAMMAR, REMOTE_KV = range(4)


class Request:
    """What is read of vLLM's."""

    def __init__(self, name, grammar=None, headers=None):
        self.request_id = name
        self.structured_output_request = None if grammar is None else SimpleNamespace(_grammar=grammar)
        self.trace_headers = headers
        self.num_output_tokens = 0
        self.is_aborted = False

    def is_finished(self):
        return self.is_aborted

    def waited(self):
        return [int(value) for value in self.trace_headers[HEADER].split(",")]


class Queue(list):
    def peek_request(self):
        return self[0]


class Scheduler:
    """Takes the first that waits, as long as it is refused nothing, and passes those that are not ready."""

    def __init__(self):
        self.waiting, self.running, self.requests = Queue(), [], {}
        self.kv_cache_manager = SimpleNamespace(allocate_slots=self._allocate)
        self.blocks, self.room, self.preempted = 100, 100, set()
        self.not_ready, self.remote = set(), set()
        self.num_allocations = 0

    def _allocate(self, request, num_tokens, *, delay_cache_blocks=False):
        self.num_allocations += 1
        return "blocks" if self.blocks > 0 else None

    def _try_schedule_encoder_inputs(self, request, num_computed, num_new, budget):
        return [], num_new if self.room > 0 else 0, budget

    def add_request(self, request):
        self.requests[request.request_id] = request
        self.waiting.append(request)
        return "added"

    def schedule(self):
        new, passed = [], []
        for request in self.running:
            self.kv_cache_manager.allocate_slots(request, 1)
        while self.waiting and not self.preempted:
            request = self.waiting.peek_request()
            if request in self.not_ready:
                passed.append(self.waiting.pop(0))
                continue
            if self._try_schedule_encoder_inputs(request, 0, 8, 1)[1] == 0:
                break
            is_remote = request in self.remote
            if self.kv_cache_manager.allocate_slots(request, 8, delay_cache_blocks=is_remote) is None:
                break
            self.waiting.pop(0)
            if is_remote:
                self.remote.discard(request)
                self.not_ready.add(request)
                passed.append(request)
                continue
            self.running.append(request)
            new.append(SimpleNamespace(req_id=request.request_id))
        self.waiting[:0] = passed
        return SimpleNamespace(scheduled_new_reqs=new, preempted_req_ids=self.preempted)


class Rig:
    """An engine's scheduler on a clock."""

    def __init__(self):
        self.now_ns = 1000
        self.scheduler = Scheduler()
        self.waits = QueueWaits(self.scheduler, now=lambda: self.now_ns)
        self.waits.attach()

    def add(self, name, **options):
        request = Request(name, **options)
        assert self.scheduler.add_request(request) == "added"
        return request

    def step(self, at_ns, output=None):
        self.now_ns = at_ns
        self.waits.begin_schedule(at_ns)
        scheduled = self.scheduler.schedule()
        self.waits.end_schedule(scheduled)
        self.waits.take_output(output)
        return [new.req_id for new in scheduled.scheduled_new_reqs]


@pytest.fixture
def rig():
    return Rig()


def test_a_request_that_waits_for_a_place_alone_waits_for_nothing_else(rig):
    request = rig.add("a")

    assert rig.step(1500) == ["a"]

    assert request.waited() == [0, 0, 0, 0]


@pytest.mark.parametrize(("resource", "place"), [("blocks", KV), ("room", ENCODER)])
def test_what_the_first_is_refused_all_wait_for_from_then_on_until_it_is_not(rig, resource, place):
    first = rig.add("a")
    setattr(rig.scheduler, resource, 0)
    rig.step(1200)
    rig.now_ns = 1250
    second = rig.add("b")
    rig.step(1300)
    setattr(rig.scheduler, resource, 9)

    assert rig.step(1450) == ["a", "b"]

    assert first.waited()[place] == 1450 - 1200
    assert second.waited()[place] == 1450 - 1250
    assert sum(first.waited()) == 250


def test_a_preemption_refuses_blocks_to_those_that_wait(rig):
    request = rig.add("a")
    rig.scheduler.preempted = {"z"}
    rig.step(1100)
    rig.scheduler.preempted = set()
    rig.step(1400)

    assert request.waited() == [300, 0, 0, 0]


def test_a_refusal_that_ended_before_a_request_came_is_not_its_own(rig):
    rig.add("a")
    rig.scheduler.blocks = 0
    rig.step(1100)
    rig.scheduler.blocks = 9
    rig.step(2000)
    rig.now_ns = 2100
    late = rig.add("b")
    rig.step(2500)

    assert late.waited() == [0, 0, 0, 0]


def test_a_grammar_is_waited_for_until_it_is_compiled_and_blocks_from_then_on(rig):
    grammar = Future()
    request = rig.add("a", grammar=grammar)
    rig.add("b")
    rig.scheduler.not_ready.add(request)
    rig.scheduler.blocks = 0
    rig.step(1200)
    rig.now_ns = 1350
    grammar.set_result("compiled")
    rig.scheduler.not_ready.clear()
    rig.step(1500)
    rig.scheduler.blocks = 9
    rig.step(1800)

    assert request.waited() == [1800 - 1350, 0, 350, 0]


def test_a_grammar_whose_end_is_told_late_is_waited_for_to_the_last(rig):
    request = rig.add("a", grammar=Future())
    rig.step(1600)

    assert request.waited() == [0, 0, 600, 0]


def test_a_remote_cache_is_waited_for_from_its_blocks_to_its_arrival(rig):
    request = rig.add("a")
    rig.scheduler.remote.add(request)
    rig.scheduler.blocks = 0
    rig.step(1100)
    rig.scheduler.blocks = 9
    rig.step(1300)  # its blocks are set aside
    assert request.trace_headers is None
    output = SimpleNamespace(kv_connector_output=SimpleNamespace(finished_recving={"a", "gone"}))
    rig.step(1700, output)
    rig.scheduler.not_ready.clear()
    rig.step(2000)

    assert request.waited() == [200, 0, 0, 400]


def test_a_request_tells_once_and_has_its_own_headers_back_behind_its_first_output(rig):
    own = {"traceparent": "00-1"}
    request = rig.add("a", headers=own)
    aborted = rig.add("b")
    rig.step(1500)
    assert request.trace_headers == own | {HEADER: "0,0,0,0"}
    rig.step(1600)
    assert HEADER in request.trace_headers  # a long prompt has no output yet

    request.num_output_tokens, aborted.is_aborted = 1, True
    rig.step(1700)

    assert request.trace_headers is own
    assert aborted.trace_headers is None
    assert not rig.waits._told


def test_a_fault_gives_requests_that_were_to_tell_their_own_headers_back(rig):
    own = {"traceparent": "00-1"}
    request = rig.add("a", headers=own)
    rig.step(1500)
    assert HEADER in request.trace_headers

    rig.waits.end_schedule(object())  # no scheduler's output

    assert rig.waits.fault
    assert request.trace_headers is own


def test_nothing_of_requests_that_run_is_looked_at(rig):
    """A hook on each of their allocations would cost an engine more than all others."""
    rig.scheduler.running = [Request(str(number)) for number in range(50)]
    allocate = rig.scheduler.kv_cache_manager.allocate_slots

    rig.step(1500)
    assert rig.scheduler.kv_cache_manager.allocate_slots is allocate
    rig.add("a")
    rig.step(1600)

    assert rig.scheduler.kv_cache_manager.allocate_slots is allocate
    assert "_try_schedule_encoder_inputs" not in vars(rig.scheduler)


@pytest.mark.parametrize("missing", ["kv_cache_manager", "waiting"])
def test_another_scheduler_is_left_alone(missing):
    scheduler = Scheduler()
    delattr(scheduler, missing)
    before = dict(vars(scheduler))

    with pytest.raises(AttributeError):
        QueueWaits(scheduler).attach()

    assert vars(scheduler) == before


class Faulty:
    """Each of our readings of the clock, the nth of which fails."""

    def __init__(self, nth):
        self.left = nth

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError("ours")
        return 1000


def _served(scheduler, waits):
    done = []
    scheduler.blocks = 0
    for number in range(6):
        scheduler.add_request(Request(str(number), grammar=Future()))
        if waits is not None and waits.fault is None:
            waits.begin_schedule(1000)
        scheduled = scheduler.schedule()
        if waits is not None and waits.fault is None:
            waits.end_schedule(scheduled)
            waits.take_output(SimpleNamespace(kv_connector_output=SimpleNamespace(finished_recving={"0"})))
        done.append([new.req_id for new in scheduled.scheduled_new_reqs])
        scheduler.blocks = number % 2
    return done, scheduler.num_allocations


@pytest.mark.parametrize("nth", range(1, 10))
def test_a_fault_of_ours_ends_it_and_the_scheduler_goes_on_as_without_us(nth, caplog):
    plain = _served(Scheduler(), None)
    scheduler = Scheduler()
    waits = QueueWaits(scheduler, now=Faulty(nth))
    waits.attach()

    assert _served(scheduler, waits) == plain

    assert "ZeroDivisionError" in waits.fault
    assert len([record for record in caplog.records if "no longer tell what they waited for" in record.message]) == 1
    assert "_try_schedule_encoder_inputs" not in vars(scheduler)


@pytest.mark.parametrize("name", ["request", "blocks", "encoder", "request that has gone"])
def test_whatever_of_vllms_is_another_than_it_was_is_a_fault_of_ours(name, rig):
    scheduler = rig.scheduler
    if name == "request":
        request = Request("a")
        del request.structured_output_request
        assert scheduler.add_request(request) == "added"
    elif name == "request that has gone":
        rig.add("a")
        schedule = scheduler.schedule
        scheduler.schedule = lambda: (schedule(), scheduler.requests.clear())[0]
        assert rig.step(1500) == ["a"]
    elif name == "blocks":
        request = rig.add("a")
        scheduler.remote.add(request)
        vars(request)["taxbreak_wait"] = 5
        assert rig.step(1500) == []
    else:
        scheduler._try_schedule_encoder_inputs = lambda *args: SimpleNamespace(__getitem__=None)
        rig.add("a")
        with pytest.raises(TypeError, match="not subscriptable"):  # vLLM's own
            rig.step(1500)

    assert rig.waits.fault
