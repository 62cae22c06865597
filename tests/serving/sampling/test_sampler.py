import random
from collections import Counter

import pytest

from taxbreak_vllm.model.step import GraphMode, Phase
from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.serving.sampling.kinds import StepKinds
from taxbreak_vllm.serving.sampling.sampler import Sampler
from taxbreak_vllm.serving.steps import GraphModes

DECODE, PREFILL, MIXED, IDLE = Phase.DECODE, Phase.PREFILL, Phase.MIXED, Phase.IDLE


class Worker:
    """Counts steps as a watch does, and asks the sampler only when it is due."""

    def __init__(self, sample_every, *, seed="seed", max_steps=256, is_on=True, looks_ahead=False):
        self.kinds = StepKinds(GraphModes(decode=GraphMode.NONE, mixed=GraphMode.NONE, max_tokens=0))
        self.sampler = Sampler(
            seed, self.kinds, sample_every=sample_every, max_steps=max_steps, is_on=is_on, looks_ahead=looks_ahead
        )
        self.num_asked = 0

    def step(self, phase=DECODE, num_tokens=4):
        kind = self.kinds.of(phase, num_tokens)
        kind.num_steps += 1
        if kind.num_steps < kind.due:
            return None
        self.num_asked += 1
        sample = self.sampler.decide(kind)
        if sample is not None:
            sample.take(1)
        return sample

    def run(self, steps):
        """Return the numbers, from 0, of the steps that are picked."""
        return [number for number, step in enumerate(steps) if self.step(*step) is not None]

    def follow(self, **request):
        self.sampler.follow(CaptureRequest(capture_id="c", **request), now_unix_ns=0)


def _traffic(num_steps, seed=1):
    """Decodes of four sizes, some prefills, few mixed steps."""
    source = random.Random(seed)
    kinds = source.choices([(DECODE, 1), (DECODE, 4), (PREFILL, 500), (MIXED, 600)], [1000, 3000, 60, 4], k=num_steps)
    return list(kinds)


@pytest.mark.parametrize("sample_every", [2, 7, 1000])
def test_one_step_in_so_many_is_picked(sample_every):
    picked = Worker(sample_every).run([(DECODE, 4)] * sample_every * 100)

    assert len(picked) == pytest.approx(100, abs=6)


def test_it_is_asked_about_few_steps_besides_those_it_picks():
    worker = Worker(1000)

    picked = worker.run([(DECODE, 4)] * 50_000)

    assert worker.num_asked == len(picked) + 1  # the first of the kind


def test_every_rank_picks_the_same_steps():
    traffic = _traffic(60_000)

    first, second = (Worker(500).run(traffic) for _ in range(2))

    assert first == second
    assert Worker(500, seed="another server").run(traffic) != first


def test_a_rank_that_slowed_down_picks_some_of_what_the_others_pick():
    traffic, slow = [(DECODE, 4)] * 60_000, Worker(100)
    slow.sampler.set(level=3)

    some, all_of_them = slow.run(traffic), Worker(100).run(traffic)

    assert set(some) < set(all_of_them)
    assert len(some) == pytest.approx(len(all_of_them) / 8, rel=0.2)


def test_rare_kinds_are_picked_more_often_than_their_share_says():
    """A mixed step is one in a thousand: one in 62 of them is picked, the next half above one in 1000·√0.001."""
    traffic = _traffic(400_000)
    num_steps = Counter(traffic)

    worker = Worker(1000)
    num_picked = Counter(traffic[number] for number in worker.run(traffic))

    assert num_picked[DECODE, 4] == pytest.approx(num_steps[DECODE, 4] / 1000, rel=0.1)
    assert num_picked[MIXED, 600] == pytest.approx(num_steps[MIXED, 600] / 62.5, abs=3)
    assert sum(num_picked.values()) < 3 * len(traffic) / 1000


def test_a_kind_that_becomes_common_is_no_longer_taken_for_rare():
    worker = Worker(100)
    worker.run([(DECODE, 4)] * 100_000 + [(MIXED, 600)] * 10_000)

    picked = worker.run([(MIXED, 600)] * 20_000)

    assert len(picked) == pytest.approx(200, rel=0.1)


def test_idle_steps_make_no_other_kind_look_rare():
    """An engine that keeps in step with its siblings runs more empty steps than others."""
    traffic, engine = _traffic(20_000), Worker(100)
    picked = []
    for number, step in enumerate(traffic):
        engine.run([(IDLE, 1)] * (number % 19))
        picked += [number] * len(engine.run([step]))

    assert picked == Worker(100).run(traffic)


def test_idle_steps_are_never_picked():
    assert Worker(2).run([(IDLE, 0)] * 100) == []


@pytest.mark.parametrize("num_before", [0, 1, 500])
def test_switched_off_nothing_is_picked_or_asked_and_switched_on_again_it_goes_on(num_before):
    worker = Worker(10)
    worker.run([(DECODE, 4)] * num_before)
    worker.sampler.set(is_on=False)

    num_asked = worker.num_asked
    assert worker.run([(DECODE, 4)] * 1000) == []
    assert worker.num_asked == num_asked + 1

    worker.sampler.set(is_on=True)
    assert len(worker.run([(DECODE, 4)] * 1000)) == pytest.approx(100, abs=2)


def test_a_new_rate_holds_at_once():
    worker = Worker(10**6)
    worker.run([(DECODE, 4)] * 10_000)

    worker.sampler.set(sample_every=10)

    assert len(worker.run([(DECODE, 4)] * 1000)) == pytest.approx(100, abs=2)


def test_the_next_steps_of_the_phase_asked_for_are_picked_and_no_more():
    worker = Worker(1000)
    worker.follow(steps=2, phase=PREFILL, stacks=True)

    samples = [worker.step(phase) for phase in (DECODE, PREFILL, DECODE, PREFILL, PREFILL)]

    assert [sample is not None for sample in samples] == [False, True, False, True, False]
    assert (samples[1].capture_id, samples[1].stacks) == ("c", True)


def test_any_phase_but_an_empty_step_will_do_unless_one_is_named():
    worker = Worker(1000)
    worker.follow(steps=2)
    assert worker.run([(IDLE, 0), (DECODE, 4), (MIXED, 8)]) == [1, 2]

    worker = Worker(1000)
    worker.follow(steps=1, phase=IDLE)
    assert worker.run([(DECODE, 4), (IDLE, 0)]) == [1]


def test_a_request_for_more_steps_than_allowed_gets_those_allowed():
    worker = Worker(1000, max_steps=3)
    worker.follow(steps=10**9)

    assert worker.run([(DECODE, 4)] * 10) == [0, 1, 2]


def test_a_step_that_was_lost_is_picked_anew():
    worker = Worker(1000)
    worker.follow(steps=1)
    worker.step()
    worker.sampler.progress.num_lost += 1

    assert worker.step() is not None
    assert worker.step() is None


@pytest.mark.parametrize("later", [None, CaptureRequest(capture_id="c", steps=5, expires_unix_ns=10)])
def test_a_request_taken_back_or_expired_ends_and_what_it_got_stays_known(later):
    worker = Worker(1000)
    worker.follow(steps=5, expires_unix_ns=10)
    worker.step()
    worker.sampler.progress.num_recorded += 1

    worker.sampler.follow(later, now_unix_ns=10)

    assert worker.step() is None
    assert (worker.sampler.progress.request.capture_id, worker.sampler.progress.num_recorded) == ("c", 1)


def test_a_request_read_again_does_not_start_over():
    worker = Worker(1000)
    for _ in range(2):
        worker.follow(steps=1)
        worker.step()

    assert worker.sampler.progress.num_started == 1


def test_no_request_is_followed_while_switched_off():
    worker = Worker(1000, is_on=False)
    worker.follow(steps=3)

    assert worker.run([(DECODE, 4)] * 10) == []


def test_a_request_does_not_change_the_regular_picks():
    regular = Worker(3).run([(DECODE, 4)] * 30)
    worker = Worker(3)
    worker.follow(steps=4)

    assert worker.run([(DECODE, 4)] * 30) == sorted({0, 1, 2, 3, *regular})


def test_one_that_looks_ahead_has_any_step_recorded_before_the_one_asked_for():
    worker = Worker(10_000, looks_ahead=True)
    worker.follow(steps=1, phase=PREFILL)

    sample = worker.step(DECODE)

    assert sample is not None
    assert (sample.suits(DECODE), sample.suits(PREFILL)) == (False, True)
    assert worker.step(PREFILL, 500) is None  # one is asked for, and one begun
