"""What is drawn of a recording and its prediction: whole, in few intervals, on one axis."""

import pytest

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.whatif.asked import asked
from taxbreak_vllm.whatif.strips import MAX_INTERVALS

TRACES = ("h100_hf_bert-small_infer", "b200_vllm_eager_infer")  # fewer intervals than that, and more


def drawn(path, **words):
    with Recording.open(path) as recording:
        answer = asked(**words).of(recording, is_drawn=True)
    return answer, answer.timeline


def sums(strip):
    return {
        kind: sum(length for length, of in zip(strip.length_ns, strip.kind, strict=True) if strip.kinds[of] == kind)
        for kind in strip.kinds
    }


@pytest.mark.parametrize("name", TRACES)
def test_without_a_change_both_are_the_same_and_as_long_as_the_recording(real_trace, name):
    answer, timeline = drawn(real_trace(name))

    assert timeline.observed == timeline.predicted
    assert timeline.length_ns == answer.window.observed_ns


@pytest.mark.parametrize("name", TRACES)
def test_strips_are_short_and_their_intervals_lie_one_after_the_other(real_trace, name):
    _, timeline = drawn(real_trace(name), host=["0.5"])

    for strip in (*timeline.observed, *timeline.predicted):
        ends = [start + length for start, length in zip(strip.start_ns, strip.length_ns, strict=True)]
        assert len(strip.kind) <= MAX_INTERVALS
        assert min(strip.length_ns) > 0
        assert all(end <= start for end, start in zip(ends, strip.start_ns[1:], strict=False))
        assert ends[-1] <= timeline.length_ns


@pytest.mark.parametrize("name", TRACES)
def test_few_intervals_have_the_time_of_many(real_trace, name):
    with Recording.open(real_trace(name)) as recording:
        total = recording.breakdown.total
    _, timeline = drawn(real_trace(name))

    host, device = map(sums, timeline.observed)
    stretch_ns = timeline.length_ns / MAX_INTERVALS
    assert device["active"] == pytest.approx(total.device.active_ns, abs=2 * stretch_ns)
    for kind in ("python", "dispatch", "library", "launch"):
        if (known := getattr(total.host, f"{kind}_ns")) is not None:
            assert host[kind] == pytest.approx(known, abs=2 * stretch_ns)


def test_a_host_that_takes_half_as_long_has_half_its_work_and_the_device_all_of_it(real_trace):
    _, timeline = drawn(real_trace(TRACES[0]), host=["0.5"])

    (host, device), (half, same) = map(sums, timeline.observed), map(sums, timeline.predicted)
    assert half["dispatch"] == pytest.approx(host["dispatch"] / 2, rel=0.02)
    assert same == device
