"""Which device to measure on, and how busy it is; without torch, which only the child process loads."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from taxbreak_vllm.model.errors import ReplayError, SettingsError

_ASK_TIMEOUT_S = 10.0
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def choose_device(name: str = "") -> str:
    """Return the device of a name; without one "cuda" where an NVIDIA or AMD GPU answers, else "cpu".

    Raises SettingsError for a name that is none. Whether torch has the device, the child that loads torch tells.
    """
    if name and not _DEVICE.fullmatch(name):
        raise SettingsError(f"--device {name}: not a device; give cpu, cuda or cuda:N")
    return name or ("cuda" if shutil.which("nvidia-smi") or Path("/dev/kfd").exists() else "cpu")


def idle_check(device: str, above: float | None) -> Callable[[], bool]:
    """Return a question: is the device at most this busy, a share of 1? Without a threshold always yes.

    A GPU is asked through nvidia-smi, the CPU backend's through the machine's own count since the last question.
    Raises ReplayError where the device cannot be asked.
    """
    if above is None:
        return lambda: True
    read = _CpuShare().read if device == "cpu" else _gpu_share
    read()
    return lambda: read() <= above


class _CpuShare:
    """The share of all cores' time that was not idle since the last reading."""

    def __init__(self) -> None:
        self._last = (0, 0)

    def read(self) -> float:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        total, idle = sum(fields), fields[3] + fields[4]
        (last_total, last_idle), self._last = self._last, (total, idle)
        return 1 - (idle - last_idle) / max(1, total - last_total)


def _gpu_share() -> float:
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=True)
        return max(int(line) for line in done.stdout.split()) / 100
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ReplayError(f"--pause-above: nvidia-smi does not tell how busy the GPU is: {error}") from error
