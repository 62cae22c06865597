"""The processor's name: on the CPU backend the device is the host, and a trace and its replay must call it alike."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the model of this machine's processor; its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
