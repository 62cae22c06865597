"""A profiler that has put itself into a process: its environment in, the variable that says so out."""

import os
from collections.abc import Mapping

# What a tool sets in the process that it starts, so that the driver, the runtime or NVTX loads its library there.
_INJECTION_VARIABLES = (
    "CUDA_INJECTION64_PATH",  # nsys, and whatever is built on CUPTI
    "NVTX_INJECTION64_PATH",  # nsys; where it names libcupti, that subscribes at the first range
    "NSYS_PROFILING_SESSION_ID",
    "NV_NSIGHT_INJECTION_TRANSPORT_TYPE",  # ncu
    "NV_NSIGHT_INJECTION_PORT_BASE",  # ncu
    "ROCP_TOOL_LIBRARIES",  # rocprofv3 and other tools on rocprofiler-sdk
    "ROCP_TOOL_LIB",  # rocprof
    "HSA_TOOLS_LIB",  # rocprof
)


def injected_profiler(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the variable by which a profiler has put itself into this process; it stays there for its whole life."""
    return next((name for name in _INJECTION_VARIABLES if environ.get(name)), None)
