"""The hardware limit of many steps: what is kept of each, and what they come to phase by phase.

Times are integer ns. What is not known is `None`, with why in `reasons` or `notes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from taxbreak_vllm.model.ceilings import CeilingSource
from taxbreak_vllm.model.limit import Bar, Bound, StepLimit
from taxbreak_vllm.model.step import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBar:
    """One step's bar, which is told of any step, and its limit, else why there is none; `active_ns` is its own work."""

    bar: Bar
    active_ns: int
    limit: StepLimit | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLimit:
    """What hardware allows the steps of a phase, and the bar of their devices' time, summed.

    `bar` is over all `num_steps`. `flops`, `bytes`, `most_bytes` and the rates are over the `num_counted` whose work is
    known, and `sources` of their ceilings by dtype and "bytes"; all else is over the `num_bounded` of them whose least
    time is known and below their device time. `mfu` and `mbu` are shares of the bars of those. `bound_ns` splits their
    least time by what it hangs on, `bound` is what most of it does.
    """

    num_steps: int
    bar: Bar
    num_counted: int = 0
    num_bounded: int = 0
    flops: int | None = None
    bytes: int | None = None
    most_bytes: int | None = None
    compute_ns: int | None = None
    memory_ns: int | None = None
    floor_ns: tuple[int, int] | None = None
    bound: Bound | None = None
    bound_ns: Mapping[Bound, int] | None = None
    mfu: float | None = None
    mbu: float | None = None
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    ceilings: tuple[str, ...] = ()
    sources: Mapping[str, CeilingSource] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReport:
    """The limit of each phase that has a step; `reason` says why none has."""

    phases: Mapping[Phase, PhaseLimit] = field(default_factory=dict)
    reason: str | None = None
    notes: tuple[str, ...] = ()
