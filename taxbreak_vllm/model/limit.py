"""What hardware allows: the work of calls and steps, the ceilings of a device, and what a trace did beside them.

Work is in FLOPs and bytes, ceilings in FLOP/s and bytes/s, times in integer ns. What is not known is `None`, with a
reason beside it; no share is ever told of a ceiling that is not known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Work:
    """What a call has to do at least.

    `flops` are those of the matrix engine, a multiply-add being two; a call that does not use it has none, whatever it
    computes. `bytes` are read and written with each distinct element once. `dtype` is what is multiplied, else what is
    read first ("bf16", "fp8", …). Where bytes hang on what no trace holds (which experts the tokens chose), `bytes` is
    the least and `most_bytes` what uniform choices would take; else that is None. `is_reduced` marks a convolution
    whose kernels (Winograd, FFT) multiply less than `flops`, which is then no bound on its time.
    """

    flops: int
    bytes: int
    dtype: str
    is_matrix: bool = False
    most_bytes: int | None = None
    is_reduced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTokens:
    """What decides the attention of a step: sums over its requests, each with q tokens scheduled of k in its context.

    `queries` is Σq, `keys` Σk (k: computed before + q), `pairs` Σ[qk − q(q−1)/2]: the causal (query, key) pairs.
    """

    queries: int
    keys: int
    pairs: int


class CeilingSource(StrEnum):
    """Where ceilings come from, best first."""

    MEASURED = "measured"
    DEVICE = "device"
    TABLE = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The most a device can do: dense FLOP/s by dtype of the matrix engine, bytes/s of its memory.

    `cache_bytes` is its last-level cache: what fits in there may be read faster than memory. `origin` names where the
    figures stand or how they were measured.
    """

    device_name: str
    source: CeilingSource
    flops_per_s: Mapping[str, float] = field(default_factory=dict)
    bytes_per_s: float | None = None
    cache_bytes: int = 0
    origin: str = ""

    def compute_ns(self, work: Work) -> float | None:
        """Return the least time for the FLOPs of some work, None where no ceiling of its dtype is known."""
        if not work.flops:
            return 0.0
        peak = self.flops_per_s.get(work.dtype)
        return work.flops / peak * 1e9 if peak else None

    def memory_ns(self, num_bytes: int) -> float | None:
        """Return the least time for so many bytes, None where no ceiling is known."""
        return num_bytes / self.bytes_per_s * 1e9 if self.bytes_per_s else None


class Bound(StrEnum):
    """What an op's least time hangs on; `latency`: it is below what the shortest kernel takes."""

    COMPUTE = "compute"
    MEMORY = "memory"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpLimit:
    """All calls of one op with the same shapes: their work, their device time, and the least that would take.

    `flops`, `bytes`, `device_ns` and `floor_ns` are sums over `count` calls. `floor_ns` and `bound` are None without
    ceilings. `reads_cache` marks calls that were faster than memory and small enough for the device's cache: their
    `floor_ns` is their own time.
    """

    op: str
    shapes: str
    dtype: str
    count: int
    flops: int
    bytes: int
    most_bytes: int | None
    device_ns: int
    floor_ns: int | None = None
    bound: Bound | None = None
    reads_cache: bool = False

    @property
    def above_ns(self) -> int | None:
        """Device time above the limit; below 0 where the work or the ceiling is wrong."""
        return None if self.floor_ns is None else self.device_ns - self.floor_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLimit:
    """One family of kernels: its work, its device time, its least time."""

    flops: int = 0
    bytes: int = 0
    device_ns: int = 0
    floor_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncovered:
    """Device time whose work is not known, and why."""

    reason: str
    device_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What the recorded shapes of a trace's steps tell of its device's time.

    `device_ns` is the summed time of activities on the shown device that have a launch event, without collectives and
    copies between host and device; `covered_ns` of it is of ops whose work is known. `compute_ns` = ΣF/P and
    `memory_ns` = ΣB/BW of all covered work, what came from the cache with its own time; `floor_ns` sums the least time
    op by op, [lowest, highest] where bytes are an interval. `mfu` and `mbu` are `compute_ns` and `memory_ns` over
    `window_ns`, the wall time from the start of the steps to the end of what they ran. All of these are None without
    ceilings, with the reason in `notes`; `mfu` and `mbu` also where little is covered.
    `bound_ns` splits `covered_ns`; `above_ns` is what of it lies above the limit.
    """

    window_ns: int
    device_ns: int
    covered_ns: int
    flops: int
    bytes: int
    most_bytes: int
    matrix_device_ns: int
    compute_ns: int | None = None
    memory_ns: int | None = None
    floor_ns: tuple[int, int] | None = None
    above_ns: int | None = None
    mfu: float | None = None
    mbu: float | None = None
    bound_ns: Mapping[Bound, int] | None = None
    shortest_kernel_ns: int | None = None
    ceilings: Ceilings | None = None
    parts: Mapping[str, PartLimit] = field(default_factory=dict)
    ops: tuple[OpLimit, ...] = ()
    uncovered: tuple[Uncovered, ...] = ()
    apart: tuple[Uncovered, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def coverage(self) -> float | None:
        """The share of `device_ns` whose work is known; None where there is no device time."""
        return self.covered_ns / self.device_ns if self.device_ns else None

    @property
    def flops_per_s(self) -> float | None:
        """What the matrix engine achieved while ops that use it ran."""
        return self.flops / self.matrix_device_ns * 1e9 if self.matrix_device_ns and self.flops else None

    @property
    def bytes_per_s(self) -> float | None:
        """What all covered ops moved while they ran, at the least."""
        return self.bytes / self.covered_ns * 1e9 if self.covered_ns else None

    def to_builtins(self) -> dict[str, Any]:
        """Return the JSON object as dicts, lists, ints and floats."""
        tree: dict[str, Any] = msgspec.to_builtins(self, str_keys=True)
        rates = {name: getattr(self, name) for name in ("coverage", "flops_per_s", "bytes_per_s")}
        return tree | rates


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyWork:
    """What a step asks of one family of a model: linear, attention, kv, moe, lm_head.

    `most_bytes` is above `bytes` where it is not known which experts' weights were read. `bytes` is None where the
    sizes of its weights or its cache are not known. `floor_ns` is its least time by itself.
    """

    flops: int
    bytes: int | None
    most_bytes: int | None
    dtype: str | None
    floor_ns: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The time of a step's device, cut into what hardware asks for, what lies above that, and waiting.

    `limit_ns + above_ns + Σ exposed_ns + other_idle_ns + unknown_ns = window_ns`, which is the step's own device time
    and the idle time of its iteration. `exposed_ns` is what the device waited for: delta_ft, delta_ct, delta_kt, other
    calls, and the engine's part. Without a limit, device time is unknown.
    """

    window_ns: int
    limit_ns: int = 0
    above_ns: int = 0
    exposed_ns: Mapping[str, int] = field(default_factory=dict)
    other_idle_ns: int = 0
    unknown_ns: int = 0

    def parts_ns(self) -> dict[str, int]:
        """Return every part by its name, which sum to `window_ns`."""
        before = {"limit": self.limit_ns, "above": self.above_ns}
        return before | dict(self.exposed_ns) | {"other_idle": self.other_idle_ns, "unknown": self.unknown_ns}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimit:
    """What hardware allows a recorded step, from the shape of its model and the sums over its requests.

    `compute_ns` = ΣF/P, `memory_ns` = ΣB/BW, `floor_ns` the larger of the two, [lowest, highest] where `most_bytes` is
    above `bytes`. `mfu` and `mbu` are shares of `bar.window_ns`. Rates are over the step's device time. `bound` is what
    the lowest least time hangs on. What is None has its reason in `notes`.
    """

    flops: int
    bar: Bar
    bytes: int | None = None
    most_bytes: int | None = None
    compute_ns: int | None = None
    memory_ns: int | None = None
    floor_ns: tuple[int, int] | None = None
    bound: Bound | None = None
    mfu: float | None = None
    mbu: float | None = None
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    ceilings: str | None = None
    parts: Mapping[str, FamilyWork] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
