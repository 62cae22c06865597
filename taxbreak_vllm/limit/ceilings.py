"""The most a device can do: as measured there, else from its properties, else as its maker states it, else unknown.

In: a device's name, and what is known of it. Out: `Ceilings`, figure by figure the best known, or None where nothing
is: then no share of a ceiling is told.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, reduce
from pathlib import Path

import msgspec

from taxbreak_vllm.model.ceilings import BYTES, Ceilings, CeilingSource, DeviceProperties, MeasuredCeilings

NO_CEILINGS = "no ceilings are known of this device, so no share of one is told"
DEVICES = Path(__file__).with_name("devices.toml")

# Dense FLOPs of the tensor cores of one SM in a clock, in 16 bits, by compute capability; others are multiples of it.
_FLOPS_PER_SM_CLOCK = {"7.0": 1024, "8.0": 2048, "8.9": 1024, "9.0": 4096, "10.0": 8192, "10.3": 8192}
_BY_16_BITS: Mapping[str, Mapping[str, float]] = {
    "7.0": {"fp16": 1},
    "8.0": {"fp16": 1, "bf16": 1, "tf32": 0.5, "int8": 2},
    "8.9": {"fp16": 1, "bf16": 1, "tf32": 0.5, "int8": 2, "fp8": 2},
    "9.0": {"fp16": 1, "bf16": 1, "tf32": 0.5, "int8": 2, "fp8": 2},
    "10.0": {"fp16": 1, "bf16": 1, "tf32": 0.5, "int8": 2, "fp8": 2, "fp4": 4},
    "10.3": {"fp16": 1, "bf16": 1, "tf32": 0.5, "fp8": 2, "fp4": 6},
}
_HALF_RATE = "GeForce"  # its tensor cores add up in single precision at half the rate, and no runtime says so


def ceilings_of(
    device_name: str, *, measured: MeasuredCeilings | None = None, properties: DeviceProperties | None = None
) -> Ceilings | None:
    """Return the best known ceilings of a device: measured ones, those of its properties, those of the table."""
    known = (_reached(device_name, measured), _followed(properties), stated(device_name))
    best = reduce(_joined, (each for each in known if each is not None), Ceilings(device_name=device_name))
    return best if best.sources else None


def stated(device_name: str) -> Ceilings | None:
    """Return what the maker of a device states; None for a device that the table does not know, or a part of one."""
    row = next((row for row in _devices() if re.search(row.name, device_name)), None)
    if row is None or _is_part(device_name):
        return None
    return _from(
        CeilingSource.TABLE,
        row.source,
        Ceilings(
            device_name=device_name,
            flops_per_s={dtype: tflops * 1e12 for dtype, tflops in row.tflops.items()},
            bytes_per_s=row.memory * 1e9,
            cache_bytes=round(row.cache * 1e6),
        ),
    )


def _followed(properties: DeviceProperties | None) -> Ceilings | None:
    """Return what follows of a device's properties.

    NVIDIA's memory transfers twice in the clock that its driver tells; how often AMD's does, no runtime tells.
    """
    if properties is None:
        return None
    own, is_half = properties, _HALF_RATE in properties.device_name
    a_clock = 0 if is_half else _FLOPS_PER_SM_CLOCK.get(own.capability, 0) * (own.num_sms or 0) * (own.clock_hz or 0)
    is_told = not own.capability.startswith("gfx") and not _is_part(own.device_name)
    transfers = 2 * (own.memory_clock_hz or 0) if is_told else 0
    factors = _BY_16_BITS.get(own.capability, {}) if a_clock else {}
    return _from(
        CeilingSource.DEVICE,
        "clocks, SMs and memory bus of the device",
        Ceilings(
            device_name=own.device_name,
            flops_per_s={dtype: a_clock * factor for dtype, factor in factors.items()},
            bytes_per_s=transfers * (own.memory_bus_bits or 0) / 8 or None,
            cache_bytes=own.cache_bytes or 0,
        ),
    )


def _is_part(device_name: str) -> bool:
    """Tell an instance of MIG, whose share of memory and caches its name and properties leave open."""
    return " MIG " in device_name


def _reached(device_name: str, measured: MeasuredCeilings | None) -> Ceilings | None:
    if measured is None:
        return None
    sets = measured.bytes_per_s
    return _from(
        CeilingSource.MEASURED,
        "measured on the device, at least",
        Ceilings(
            device_name=device_name,
            flops_per_s={dtype: rate.per_s for dtype, rate in measured.flops_per_s.items()},
            bytes_per_s=sets[max(sets)].per_s if sets else None,
            by_working_set={size: rate.per_s for size, rate in sets.items()},
            shortest_kernel_ns=measured.shortest_kernel_ns,
        ),
    )


def _from(source: CeilingSource, origin: str, own: Ceilings) -> Ceilings:
    keys = [*own.flops_per_s, *([BYTES] if own.bytes_per_s else [])]
    return replace(own, sources=dict.fromkeys(keys, source), origins={source: origin} if keys else {})


def _joined(best: Ceilings, other: Ceilings) -> Ceilings:
    """Fill in what the better one lacks."""
    sources = {**other.sources, **best.sources}
    origins = {**best.origins, **other.origins}
    return Ceilings(
        device_name=best.device_name,
        flops_per_s={**other.flops_per_s, **best.flops_per_s},
        bytes_per_s=best.bytes_per_s or other.bytes_per_s,
        by_working_set=best.by_working_set or other.by_working_set,
        cache_bytes=best.cache_bytes or other.cache_bytes,
        shortest_kernel_ns=best.shortest_kernel_ns or other.shortest_kernel_ns,
        sources=sources,
        origins={source: words for source, words in origins.items() if source in sources.values()},
    )


class _Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of `devices.toml`."""

    name: str
    source: str
    read: tuple[str, ...]
    tflops: dict[str, float]
    memory: float
    cache: float


class _Devices(msgspec.Struct, frozen=True):
    device: tuple[_Device, ...]


@cache
def _devices() -> tuple[_Device, ...]:
    return msgspec.convert(tomllib.loads(DEVICES.read_text(encoding="utf-8")), _Devices).device
