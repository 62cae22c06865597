"""Whether somebody else profiles this process: vLLM's worker in, yes or no out (`machine.injected` tells the rest).

There is room for one: CUPTI takes one subscriber a process (pytorch#117935), and a second torch profiler does not raise
but silently cancels the first, whose owner then crashes when it stops (measured with vLLM's /start_profile, 0.32).
"""

import sys
from typing import Any


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
