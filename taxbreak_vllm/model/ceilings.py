"""The most that a device can do, and where that is known from: measured, its own properties, or its maker's datasheet.

Rates are FLOP/s of dense products by dtype ("bf16", "fp8", …) and bytes/s. What is not known is absent, and then no
share of it is told.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from taxbreak_vllm.model.numbers import Int64

Key = TypeVar("Key")
BYTES = "bytes"  # the key of bytes/s in `Ceilings.sources`


class CeilingSource(StrEnum):
    """Where a ceiling comes from, best first."""

    MEASURED = "measured"
    DEVICE = "device"
    TABLE = "table"


class Level(StrEnum):
    """What bytes are read from: so few as fit into the last-level cache may never reach memory."""

    CACHE = "cache"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProperties:
    """What a runtime tells of its device; None for what it does not, with the reason in `missing`.

    `capability` is "9.0" of an NVIDIA GPU, "gfx942" of an AMD one. Clocks are the highest, not those of now.
    """

    device_name: str
    capability: str = ""
    num_sms: Int64 | None = None
    clock_hz: Int64 | None = None
    memory_clock_hz: Int64 | None = None
    memory_bus_bits: Int64 | None = None
    cache_bytes: Int64 | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """The most that was reached, FLOP/s or bytes/s, and what reached it ("torch.mm 4096×4096×4096")."""

    per_s: float
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCeilings:
    """What was reached on a device: it can do at least this.

    `flops_per_s` is by dtype, `bytes_per_s` by working set (all bytes that are read and written, again and again).
    `shortest_kernel_ns` is how long the device is at work on a kernel that does nothing. `missing` says of a dtype why
    it was not measured.
    """

    flops_per_s: Mapping[str, Rate] = field(default_factory=dict)
    bytes_per_s: Mapping[Int64, Rate] = field(default_factory=dict)
    shortest_kernel_ns: Int64 | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    measured_unix_ns: Int64 = 0

    def raised(self, earlier: "MeasuredCeilings | None") -> "MeasuredCeilings":
        """Return the better of two measurements, figure by figure: what was reached once can be reached.

        Whichever of the two is asked about the other, the same comes of it.
        """
        if earlier is None:
            return self
        flops = _best(earlier.flops_per_s, self.flops_per_s)
        kernels = [ns for ns in (self.shortest_kernel_ns, earlier.shortest_kernel_ns) if ns is not None]
        missing = {
            dtype: max(earlier.missing.get(dtype, ""), self.missing.get(dtype, ""))
            for dtype in sorted({*earlier.missing, *self.missing})
        }
        return MeasuredCeilings(
            flops_per_s=flops,
            bytes_per_s=dict(sorted(_best(earlier.bytes_per_s, self.bytes_per_s).items())),
            shortest_kernel_ns=min(kernels, default=None),
            missing={dtype: why for dtype, why in missing.items() if dtype not in flops},
            measured_unix_ns=max(self.measured_unix_ns, earlier.measured_unix_ns),
        )


def _best(first: Mapping[Key, Rate], second: Mapping[Key, Rate]) -> dict[Key, Rate]:
    found = dict(first)
    for key, rate in second.items():
        if key not in found or (rate.per_s, rate.by) > (found[key].per_s, found[key].by):
            found[key] = rate
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The best known ceilings of a device; `sources` says of each dtype, and of "bytes", where it is from.

    `bytes_per_s` is of its memory, `by_working_set` what was measured of smaller and larger sets of bytes. `origins`
    says in words what each source is. `cache_bytes` is its last-level cache, 0 where that is not known.
    """

    device_name: str
    flops_per_s: Mapping[str, float] = field(default_factory=dict)
    bytes_per_s: float | None = None
    by_working_set: Mapping[int, float] = field(default_factory=dict)
    cache_bytes: int = 0
    shortest_kernel_ns: int | None = None
    sources: Mapping[str, CeilingSource] = field(default_factory=dict)
    origins: Mapping[CeilingSource, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Say where they are from: all of them at once, or of each source which."""
        keys_by_source: dict[CeilingSource, list[str]] = {}
        for key, source in self.sources.items():
            keys_by_source.setdefault(source, []).append(key)
        if len(keys_by_source) == 1:
            return self.origins[next(iter(keys_by_source))]
        parts = (f"{', '.join(keys)} {self.origins[source]}" for source, keys in keys_by_source.items())
        return "; ".join(parts) or "none known"

    def compute_ns(self, flops: int, dtype: str | None) -> float | None:
        """Return the least time for FLOPs of a dtype, None where no ceiling of it is known."""
        if not flops:
            return 0.0
        peak = self.flops_per_s.get(dtype or "")
        return flops / peak * 1e9 if peak else None

    def memory_ns(self, num_bytes: int | None) -> float | None:
        """Return the least time for so many bytes, None where no ceiling is known."""
        rate = self._rate(num_bytes or 0)
        return None if num_bytes is None or rate is None else num_bytes / rate * 1e9

    def _rate(self, num_bytes: int) -> float | None:
        """Measured working sets as small as these bytes, and all larger ones, bound how fast they may be."""
        if not self.by_working_set:
            return self.bytes_per_s
        smaller = max((size for size in self.by_working_set if size <= num_bytes), default=0)
        return max(rate for size, rate in self.by_working_set.items() if size >= smaller)

    def level(self, num_bytes: int) -> Level:
        """Tell where so many bytes may come from: what is read may lie in the cache, what is written stay there."""
        return Level.CACHE if num_bytes <= 2 * self.cache_bytes else Level.MEMORY

    def of_work(self, dtypes: Iterable[str | None], num_bytes: int | None) -> "Ceilings":
        """Return those of some dtypes alone, and bytes/s of what so many bytes may come from.

        That is None for bytes that may lie in a cache of which nothing is known but its size.
        """
        flops = {dtype: self.flops_per_s[dtype] for dtype in dtypes if dtype is not None and dtype in self.flops_per_s}
        is_unknown = not self.by_working_set and num_bytes is not None and self.level(num_bytes) is Level.CACHE
        rate = None if is_unknown else self._rate(num_bytes or 0)
        keys = {*flops, *([BYTES] if rate else [])}
        sources = {key: source for key, source in self.sources.items() if key in keys}
        return replace(
            self,
            flops_per_s=flops,
            bytes_per_s=rate,
            by_working_set={},
            sources=sources,
            origins={source: words for source, words in self.origins.items() if source in sources.values()},
        )
