import pytest

from taxbreak_vllm.model import CaptureRequest, Phase
from taxbreak_vllm.serving.sampler import Sampler


def _picked(sampler, num_steps, phase=Phase.DECODE):
    return [number for number in range(1, num_steps + 1) if sampler.decide(phase) is not None]


@pytest.mark.parametrize(("sample_every", "picked"), [(2, [2, 4, 6]), (7, [7, 14, 21]), (1000, [16, 1016, 2016])])
def test_one_step_in_so_many_is_picked_and_none_of_the_cold_ones(sample_every, picked):
    assert _picked(Sampler(sample_every), picked[-1]) == picked


def test_each_phase_is_counted_on_its_own():
    sampler = Sampler(4)

    assert _picked(sampler, 3, Phase.DECODE) == []
    assert _picked(sampler, 4, Phase.PREFILL) == [4]
    assert _picked(sampler, 1, Phase.DECODE) == [1]


def test_idle_steps_are_never_picked():
    assert _picked(Sampler(2), 100, Phase.IDLE) == []


def _following(sampler, **request):
    sampler.follow(CaptureRequest(capture_id="c", **request), now_unix_ns=0)
    return sampler


def _take(sampler, phase):
    sample = sampler.decide(phase)
    if sample is not None:
        sample.take(1)
    return sample


def test_the_next_steps_of_the_phase_asked_for_are_picked_and_no_more():
    sampler = _following(Sampler(1000), steps=2, phase=Phase.PREFILL, stacks=True)
    phases = [Phase.DECODE, Phase.PREFILL, Phase.DECODE, Phase.PREFILL, Phase.PREFILL]

    samples = [_take(sampler, phase) for phase in phases]

    assert [sample is not None for sample in samples] == [False, True, False, True, False]
    assert (samples[1].capture_id, samples[1].stacks) == ("c", True)


def test_any_phase_but_an_empty_step_will_do_unless_one_is_named():
    sampler = _following(Sampler(1000), steps=2)

    assert [_take(sampler, phase) is not None for phase in (Phase.IDLE, Phase.DECODE, Phase.MIXED)] == [
        False,
        True,
        True,
    ]
    assert _take(_following(Sampler(1000), steps=1, phase=Phase.IDLE), Phase.IDLE) is not None


def test_a_step_that_was_lost_is_picked_anew():
    sampler = _following(Sampler(1000), steps=1)
    _take(sampler, Phase.DECODE)
    sampler.progress.num_lost += 1

    assert _take(sampler, Phase.DECODE) is not None
    assert _take(sampler, Phase.DECODE) is None


@pytest.mark.parametrize("later", [None, CaptureRequest(capture_id="c", steps=5, expires_unix_ns=10)])
def test_a_request_taken_back_or_expired_ends_and_what_it_got_stays_known(later):
    sampler = _following(Sampler(1000), steps=5, expires_unix_ns=10)
    _take(sampler, Phase.DECODE)
    sampler.progress.num_recorded += 1

    sampler.follow(later, now_unix_ns=10)

    assert _take(sampler, Phase.DECODE) is None
    assert (sampler.progress.request.capture_id, sampler.progress.num_recorded) == ("c", 1)


def test_a_request_read_again_does_not_start_over():
    sampler = _following(Sampler(1000), steps=1)
    _take(sampler, Phase.DECODE)

    _following(sampler, steps=1)

    assert _take(sampler, Phase.DECODE) is None


def test_a_request_does_not_end_the_regular_samples():
    sampler = _following(Sampler(3), steps=4)

    picked = [number for number in range(1, 10) if _take(sampler, Phase.DECODE) is not None]

    assert picked == [1, 2, 3, 4, 6, 9]
