"""The most a device can do: as measured there, else from its properties, else as its maker states it, else unknown.

In: a device's name, and what is known of it. Out: `Ceilings`, or None: then no share of a ceiling is told.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from taxbreak_vllm.model.limit import Ceilings, CeilingSource

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProperties:
    """What a runtime tells of its device; 0 and "" for what it does not. Memory transfers twice in a clock."""

    device_name: str
    capability: str = ""
    num_sms: int = 0
    clock_hz: float = 0
    memory_clock_hz: float = 0
    memory_bus_bits: int = 0
    cache_bytes: int = 0

    def ceilings(self) -> Ceilings | None:
        """Return what follows of them; None where nothing does."""
        a_clock = _FLOPS_PER_SM_CLOCK.get(self.capability, 0) * self.num_sms * self.clock_hz
        factors = _BY_16_BITS.get(self.capability, {}) if a_clock else {}
        bytes_per_s = self.memory_clock_hz * 2 * self.memory_bus_bits / 8
        if not factors and not bytes_per_s:
            return None
        return Ceilings(
            device_name=self.device_name,
            source=CeilingSource.DEVICE,
            flops_per_s={dtype: a_clock * factor for dtype, factor in factors.items()},
            bytes_per_s=bytes_per_s or None,
            cache_bytes=self.cache_bytes,
            origin="clocks, SMs and memory bus of the device",
        )


def ceilings_of(
    device_name: str, *, measured: Ceilings | None = None, properties: DeviceProperties | None = None
) -> Ceilings | None:
    """Return the best known ceilings of a device: measured ones, those of its properties, those of the table."""
    return measured or (properties and properties.ceilings()) or stated(device_name)


def stated(device_name: str) -> Ceilings | None:
    """Return what the maker of a device states; None for a device that the table does not know."""
    row = next((row for row in _devices() if device_name and re.search(row.name, device_name)), None)
    if row is None:
        return None
    return Ceilings(
        device_name=device_name,
        source=CeilingSource.TABLE,
        flops_per_s={dtype: tflops * 1e12 for dtype, tflops in row.tflops.items()},
        bytes_per_s=row.memory * 1e9,
        cache_bytes=round(row.cache * 1e6),
        origin=row.source,
    )


class _Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of `devices.toml`."""

    name: str
    source: str
    tflops: dict[str, float]
    memory: float
    cache: float


class _Devices(msgspec.Struct, frozen=True):
    device: tuple[_Device, ...]


@cache
def _devices() -> tuple[_Device, ...]:
    return msgspec.convert(tomllib.loads(DEVICES.read_text(encoding="utf-8")), _Devices).device
