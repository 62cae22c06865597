"""The shares of a step's window, as other tools and as we count them."""

from taxbreak_vllm.insight.shares import Shares
from taxbreak_vllm.model.breakdown import DeviceTime, IdleTime, StepBreakdown

DEVICE = DeviceTime(
    window_ns=1000,
    active_ns=500,
    other_active_ns=100,
    idle_ns=400,
    idle=IdleTime(host_ns=150, blocked_ns=30, queue_ns=20, edge_ns=200),
)


def test_utilization_counts_whatever_runs_and_active_only_the_steps_own():
    shares = Shares.of(StepBreakdown(device=DEVICE, tklqt_ns=1))

    assert (shares.utilization_ratio, shares.active_ratio, shares.waits_for_host_ratio) == (0.6, 0.5, 0.15)
    assert (shares.blocked_ratio, shares.queue_ratio, shares.edge_ratio) == (0.03, 0.02, 0.2)
    assert shares.between_activities_ratio == 600 / 800


def test_there_is_no_gpu_utilization_on_a_cpu():
    assert Shares.of(StepBreakdown(device=DEVICE)).utilization_ratio is None


def test_of_nothing_no_share_is_known():
    assert Shares.of(StepBreakdown()) == Shares()
    assert Shares.of(StepBreakdown(device=DeviceTime(window_ns=5, idle_ns=5, idle=IdleTime(edge_ns=5)))) == Shares(
        active_ratio=0, waits_for_host_ratio=0, blocked_ratio=0, queue_ratio=0, edge_ratio=1
    )
