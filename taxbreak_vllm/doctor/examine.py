"""Every check, in the order in which an operator would go about it."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from taxbreak_vllm.doctor import folder, gpu, host, software
from taxbreak_vllm.doctor.finding import Finding
from taxbreak_vllm.doctor.sidecar import Status, sidecar
from taxbreak_vllm.model.version import package_version
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool


def examine(
    *, spool: Path | None, url: str, ask: Callable[[], Status | None], now_ns: Callable[[], int]
) -> Iterator[Finding]:
    """Yield what each check finds on this host; slow ones, a second or two for torch, come as they are done."""
    settings, of_settings = software.settings(lambda: load_settings(spool=spool))
    yield of_settings
    root = spool or settings.spool
    yield folder.spool_owner(root)
    yield folder.spool_space(Spool(root, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures))
    yield host.temporary_folder(Path(tempfile.gettempdir()))
    yield software.vllm_version(software.installed("vllm"))
    yield software.plugin()
    torch = software.probe_torch()
    yield software.torch_kineto(torch)
    if isinstance(torch, software.Torch):
        yield gpu.cupti_version(torch.cupti, has_cuda=torch.cuda is not None)
    yield software.other_profilers(os.environ)
    here = host.Host()
    yield gpu.profiling_permission(here)
    for check in (
        host.perf_events,
        host.governor,
        host.processors,
        host.throttling,
        host.memory,
        host.clock,
        host.run_queue,
    ):
        yield check(here)
    yield from sidecar(url, ask, version=package_version(), now_ns=now_ns)
