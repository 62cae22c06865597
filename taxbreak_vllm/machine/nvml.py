"""What NVML says of a GPU of this machine, by the extra `nvml`: the energy that it has taken since its driver came up.

In: a GPU's UUID. Out: a counter, or in one line why there is none. The library may be missing, old or failing at any
call; none of that is raised.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NoEnergy:
    """Why a GPU's energy is not known."""

    reason: str


class Nvml:
    """NVML, loaded with the first question. For one thread."""

    def __init__(self) -> None:
        self._handle_by_uuid: dict[str, Any] = {}

    def energy_mj(self, uuid: str) -> int | NoEnergy:
        """Return the energy (mJ) that a GPU took since its driver was loaded (nvmlDeviceGetTotalEnergyConsumption)."""
        try:
            import pynvml
        except Exception as error:  # one that is broken is as good as none
            return NoEnergy(f"NVML's binding is not there ({error}): pip install 'taxbreak-vllm[nvml]'")
        try:
            if uuid not in self._handle_by_uuid:
                pynvml.nvmlInit()
                self._handle_by_uuid[uuid] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            handle = self._handle_by_uuid[uuid]
            if _is_parted(pynvml, handle):
                return NoEnergy(f"{uuid} is parted by MIG, and its energy is known as a whole alone")
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except Exception as error:  # a driver that is reloaded invalidates handles
            self._handle_by_uuid.pop(uuid, None)
            return NoEnergy(f"NVML tells no energy of {uuid}: {error}")


def _is_parted(pynvml: Any, handle: Any) -> bool:  # noqa: ANN401 - a module, a handle of its library
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError_NotSupported:
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)
