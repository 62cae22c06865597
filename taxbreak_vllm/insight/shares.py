"""How a step's time reads as shares: what other tools call utilisation, beside what the device and the host did.

In: a step, or a sum of steps. Out: `Shares`, ratios of the device's window, None where there is nothing to divide.
"""

from dataclasses import dataclass

from taxbreak_vllm.model.breakdown import StepBreakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Ratios of the device's window of a step.

    `utilization` is what NVML, nvidia-smi and DCGM (`DCGM_FI_DEV_GPU_UTIL`) show: the share of time in which one or
    more kernels were executing, whosever they are and however little of the device they fill. Copies and fills, which
    those tools leave out, are in it here. None on the CPU backend.
    `active` is the step's own device work, `waits_for_host`, `blocked`, `queue` and `edge` are idle time by cause.
    `between_activities` is the device's work as a share of the time from its first to its last activity.
    """

    utilization_ratio: float | None = None
    active_ratio: float | None = None
    waits_for_host_ratio: float | None = None
    blocked_ratio: float | None = None
    queue_ratio: float | None = None
    edge_ratio: float | None = None
    between_activities_ratio: float | None = None

    @classmethod
    def of(cls, step: StepBreakdown) -> "Shares":
        """Divide the parts of the device's window by its length."""
        device, idle = step.device, step.device.idle
        if not device.window_ns:
            return cls()
        busy_ns = device.active_ns + device.other_active_ns
        inner_ns = device.window_ns - (idle.edge_ns or 0)

        def share(amount_ns: int | None) -> float | None:
            return None if amount_ns is None else amount_ns / device.window_ns

        has_idle = idle.edge_ns is not None
        is_gpu = step.tklqt_ns is not None  # where ops run on the host there is no launch to wait for
        return cls(
            utilization_ratio=share(busy_ns) if is_gpu and has_idle else None,
            active_ratio=share(device.active_ns) if has_idle else None,
            waits_for_host_ratio=share(idle.host_ns),
            blocked_ratio=share(idle.blocked_ns),
            queue_ratio=share(idle.queue_ns),
            edge_ratio=share(idle.edge_ns),
            between_activities_ratio=busy_ns / inner_ns if inner_ns and has_idle else None,
        )
