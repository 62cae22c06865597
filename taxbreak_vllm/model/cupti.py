"""What is known of CUPTI's versions: the number that `cuptiGetVersion` returns in, what that one gets wrong out.

Since CUDA 13.0 the number is xxyyzz, of CUDA xx.yy with CUPTI's own update zz; before, releases are counted (24: 12.6).
"""

_FIRST_UNTIMED = 24  # zero timestamps came with CUDA 12.6 Update 2, which has the number of 12.6
_FIRST_NUMBERED = 130000
_TIMED = 130100
FIXED = 130101  # taken as that of CUDA 13.1 Update 1; NVIDIA does not promise that the two updates are numbered alike

# With CUPTI 13.0 kernel times turned invalid and device memory had grown by 1 GB after 25.1 million records
# (parcagpu#23). No later release is said to have mended it; it is bounded where the other faults are.
MAX_RECORDS = 20_000_000


def faults(version: int | None) -> str | None:
    """Say in one sentence what recordings made with this CUPTI lack and what to do; None where nothing is known."""
    if version is None or not _FIRST_UNTIMED <= version < FIXED:
        return None
    lacks = []
    if version < _TIMED:
        lacks.append("kernels at the start of every recording but a process's first may be missing")
    if version >= _FIRST_NUMBERED:
        lacks.append("kernels may stand under another launch of a CUDA graph than their own")
        remedy = "install nvidia-cuda-cupti of CUDA 13.1 Update 1 or later"
    else:
        remedy = "take a torch for CUDA 13 with nvidia-cuda-cupti of CUDA 13.1 Update 1 or later"
    return f"CUPTI {_named(version)}: {', and '.join(lacks)}; {remedy}"


def leaks(version: int | None) -> bool:
    """Whether this CUPTI may record no more than `MAX_RECORDS` in one process."""
    return version is not None and _FIRST_NUMBERED <= version < FIXED


def _named(version: int) -> str:
    if version < _FIRST_NUMBERED:
        return f"{version} (CUDA 12)"
    return f"{version // 10_000}.{version // 100 % 100} ({version})"
