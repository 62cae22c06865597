"""What a worker's device says of itself, once at start: clocks, multiprocessors, memory bus, cache.

In: a torch.device. Out: `DeviceProperties`; what is not told is None, with a reason, and nothing raises. Nothing is
loaded for it.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping
from typing import Any

from taxbreak_vllm.model.ceilings import DeviceProperties

# Names of torch's properties (clocks and bus since 2.10) and of the driver's attributes, cuda.h CUdevice_attribute
_FIGURES: Mapping[str, tuple[str, int, int]] = {
    "num_sms": ("multi_processor_count", 16, 1),
    "clock_hz": ("clock_rate", 13, 1000),  # kHz
    "memory_clock_hz": ("memory_clock_rate", 36, 1000),
    "memory_bus_bits": ("memory_bus_width", 37, 1),
    "cache_bytes": ("L2_cache_size", 38, 1),
}


def properties_of(device: Any, device_name: str) -> DeviceProperties:  # noqa: ANN401 - a torch.device
    """Read the properties of an NVIDIA or AMD GPU; of any other device nothing but its name is known."""
    try:
        return _properties(device, device_name)
    except Exception as error:
        return DeviceProperties(device_name=device_name, missing=(f"its properties cannot be read: {error!r}"[:200],))


def _properties(device: Any, device_name: str) -> DeviceProperties:  # noqa: ANN401
    torch = sys.modules.get("torch")
    kind = getattr(device, "type", "")
    if torch is None or kind != "cuda":
        return DeviceProperties(
            device_name=device_name, missing=(f"a device of type {kind or 'none'} tells no clocks and no bus",)
        )
    own = torch.cuda.get_device_properties(device)
    is_amd = torch.version.hip is not None
    index = torch.cuda.current_device() if device.index is None else device.index
    ask = (lambda attribute: 0) if is_amd else _driver(index)
    figures = {
        name: _figure(own, torch_name, attribute, ask) * unit
        for name, (torch_name, attribute, unit) in _FIGURES.items()
    }
    return DeviceProperties(
        device_name=device_name,
        capability=own.gcnArchName.partition(":")[0] if is_amd else f"{own.major}.{own.minor}",
        missing=tuple(f"neither torch nor its driver tells {name}" for name, value in figures.items() if value <= 0),
        **{name: value if value > 0 else None for name, value in figures.items()},
    )


def _figure(own: Any, torch_name: str, attribute: int, ask: Callable[[int], int]) -> int:  # noqa: ANN401
    return int(getattr(own, torch_name, 0) or ask(attribute))


def _driver(index: int) -> Callable[[int], int]:
    """Ask NVIDIA's driver, which torch has loaded and counts devices alike, for an attribute; 0 where it says none."""

    def ask(attribute: int) -> int:
        try:
            cuda = ctypes.CDLL("libcuda.so.1")
        except OSError:
            return 0
        device, value = ctypes.c_int(), ctypes.c_int()
        if cuda.cuDeviceGet(ctypes.byref(device), index):
            return 0
        failed = cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        return 0 if failed else value.value

    return ask
