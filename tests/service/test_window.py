import pytest

from taxbreak_vllm.model import Tier
from taxbreak_vllm.service.window import MAX_LISTED_STEPS, merge, replay_shares


@pytest.fixture
def part(put, analyze):
    def part(step_id, scale=1, **fields):
        return step_id, analyze(put(step_id, scale, **fields))

    return part


def test_the_total_is_the_sum_and_steps_carry_their_ids(part):
    merged = merge([part("a", 1), part("b", 2)])

    assert [step.name for step in merged.steps] == ["a", "b"]
    assert merged.total.taxes.delta_ft_ns == 180
    assert merged.total.device.active_ns == 330
    assert merged.total.hdbi == pytest.approx(330 / 600)
    assert merged.calibration.dilation == 1.5
    assert merged.coverage.kernels == 10
    assert merged.source.model_name == "tiny"


def test_more_steps_than_are_listed_are_in_the_total(part):
    (_, one) = part("a")

    merged = merge([(f"s{index}", one) for index in range(MAX_LISTED_STEPS + 1)])

    assert len(merged.steps) == MAX_LISTED_STEPS
    assert merged.total.taxes.delta_ft_ns == 60 * (MAX_LISTED_STEPS + 1)
    assert f"{MAX_LISTED_STEPS} newest of {MAX_LISTED_STEPS + 1} steps listed, all in total" in merged.notes


def test_nothing_merges_to_nothing_known():
    merged = merge([])

    assert merged.steps == ()
    assert merged.total.hdbi is None
    assert merged.total.taxes.delta_ft_ns is None


def test_a_tiers_share_is_weighted_by_orchestration_time():
    shares = replay_shares(
        [({Tier.TRACE: 1.0}, 300), ({Tier.REPLAYED: 1.0}, 100), ({}, 500), ({Tier.TRACE: 1.0}, None)]
    )

    assert shares == {Tier.REPLAYED: 0.25, Tier.TRACE: 0.75}
