"""What hardware allows: the work of calls and steps, and what a trace did beside the ceilings of its device.

Work is in FLOPs and bytes, ceilings in FLOP/s and bytes/s, times in integer ns. What is not known is `None`, with a
reason beside it; no share is ever told of a ceiling that is not known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from taxbreak_vllm.model.ceilings import Ceilings, Level

SLACK = 1.05  # timestamps, clocks above the stated boost: what may seem faster than a ceiling


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


class Bound(StrEnum):
    """What a least time hangs on; `latency`: it is below what the kernels take that do nothing."""

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
class Limit:
    """What the recorded shapes of a trace's steps tell of its device's time.

    `device_ns` is the summed time of activities on the shown device that have a launch event, without collectives and
    copies between host and device; `covered_ns` of it is of ops whose work is known. `compute_ns` = ΣF/P and
    `memory_ns` = ΣB/BW of all covered work, what came from the cache with its own time; `floor_ns` sums the least time
    op by op, [lowest, highest] where bytes are an interval. `mfu` and `mbu` are `compute_ns` and `memory_ns` over
    `window_ns`, the wall time from the start of the steps to the end of what they ran. All of these are None without
    ceilings, with the reason in `notes`; `mfu` and `mbu` also where little is covered.
    `bound_ns` splits `covered_ns`; `above_ns` is what of it lies above the limit. `bar` is of the time of the steps.
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
    bar: Bar | None = None
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

    Where it is not known which experts' weights were read, `bytes` are the least, `most_bytes` what uniform choices
    take on the average, `reach_bytes` what no choices exceed. They are None where the sizes of its weights or its cache
    are not known. `floor_ns` is its least time by itself.
    """

    flops: int
    bytes: int | None
    most_bytes: int | None
    reach_bytes: int | None
    dtype: str | None
    floor_ns: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimit:
    """What hardware allows a recorded step, from the shape of its model and the sums over its requests.

    `compute_ns` = ΣF/P, `memory_ns` = ΣB/BW, `floor_ns` the larger of the two, [lowest, highest] where `most_bytes` is
    above `bytes`. `bound` is what the lowest least time hangs on, `latency` where it is below `latency_ns`, what as
    many kernels take that do nothing. `mfu` and `mbu` are shares of `bar.window_ns`; where the step's device took less
    than a ceiling allows they and `bound` are None. Rates are over the step's device time. `ceilings` are those that it
    was held to, each with its source; `level` is where its bytes may come from. What is None has its reason in `notes`.
    """

    flops: int
    bar: Bar
    bytes: int | None = None
    most_bytes: int | None = None
    reach_bytes: int | None = None
    compute_ns: int | None = None
    memory_ns: int | None = None
    latency_ns: int | None = None
    floor_ns: tuple[int, int] | None = None
    bound: Bound | None = None
    mfu: float | None = None
    mbu: float | None = None
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    ceilings: Ceilings | None = None
    level: Level | None = None
    parts: Mapping[str, FamilyWork] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
