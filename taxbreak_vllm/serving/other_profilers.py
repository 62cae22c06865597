"""Whether somebody else profiles this process: vLLM's worker and the process in, yes or no out.

There is room for one: CUPTI takes one subscriber a process (pytorch#117935), and a second torch profiler does not raise
but silently cancels the first, whose owner then crashes when it stops (measured with vLLM's /start_profile, 0.32).
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

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


def is_profiler_running(worker: Any) -> bool:  # noqa: ANN401 - a vLLM worker
    """Tell whether a profiler runs in this process, or is about to: vLLM's own, Proton or one of torch."""
    import torch
    from torch.autograd import profiler as autograd_profiler

    theirs = getattr(worker, "profiler", None)
    return bool(
        getattr(theirs, "is_running", False)
        or getattr(theirs, "_active", False)
        or getattr(theirs, "has_cuda_graph_session", False)  # Proton between its sessions (0.31 and later)
        or _is_proton_on()
        or autograd_profiler._is_profiler_enabled
        or torch._C._autograd._profiler_type() != torch._C._profiler.ActiveProfilerType.NONE
    )


def _is_proton_on() -> bool:
    """Tell whether anybody has started Triton's profiler and not finalized it yet (triton/profiler/flags.py)."""
    flags = getattr(sys.modules.get("triton.profiler.flags"), "flags", None)
    return bool(getattr(flags, "profiling_on", False))
