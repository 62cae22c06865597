"""The same routes and metrics on vLLM's own FastAPI app: cheap to mount, and nothing runs before `start`."""

from typing import Any

from fastapi import FastAPI

from taxbreak_vllm.service.http.compression import Compressed
from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.service.http.trace_reads import TraceReads
from taxbreak_vllm.service.metrics.collector import TaxbreakCollector
from taxbreak_vllm.service.metrics.exposition import Exposition, append_metrics
from taxbreak_vllm.service.processes.supervisor import Supervisor, analyzer_command
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool


class MountedService:
    """What hangs on an app: its routes and metrics, and an analyzer once it was started."""

    def __init__(self, settings: Settings) -> None:
        self._server_id: str | None = None
        self._supervisor = Supervisor(analyzer_command(settings))
        spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
        self._traces = TraceReads(spool, settings.baselines_path)
        router = create_router(
            settings,
            traces=self._traces,
            server_id=lambda: self._server_id,
            num_restarts=lambda: self._supervisor.num_restarts,
        )
        self.routes: list[Any] = router.routes
        self.exposition = Exposition(TaxbreakCollector.of(settings, spool))

    def start(self, server_id: str) -> None:
        """Say which server's app this is, and start an analyzer; of several on one spool the others wait."""
        self._server_id = server_id
        self._supervisor.start()

    def close(self) -> None:
        """End the analyzer and the child that reads traces; both end with this process in any case."""
        self._supervisor.close()
        self._traces.close()


def mount(app: FastAPI, settings: Settings) -> MountedService:
    """Put routes and metrics on an app, once: a second call returns what the first one did."""
    mounted: MountedService | None = getattr(app.state, "taxbreak", None)
    if mounted is None:
        mounted = app.state.taxbreak = MountedService(settings)
        for route in mounted.routes:
            route.app = Compressed(route.app)
        app.routes.extend(mounted.routes)
        append_metrics(app, mounted.exposition)
    return mounted
