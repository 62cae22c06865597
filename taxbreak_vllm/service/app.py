"""The sidecar: the API, the metrics and the page on one port; others in their own processes."""

import asyncio
import logging
import os
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from taxbreak_vllm.archive.store import check
from taxbreak_vllm.model.errors import SettingsError, SpoolError, TaxbreakError
from taxbreak_vllm.model.version import package_version
from taxbreak_vllm.service.http.compression import Compressed
from taxbreak_vllm.service.http.keys import Keys
from taxbreak_vllm.service.http.openapi import errors
from taxbreak_vllm.service.http.page import create_page_router
from taxbreak_vllm.service.http.problems import problem_response
from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.service.http.sessions import Sessions
from taxbreak_vllm.service.http.trace_reads import TraceReads
from taxbreak_vllm.service.metrics.archive import ArchiveCollector
from taxbreak_vllm.service.metrics.collector import TaxbreakCollector
from taxbreak_vllm.service.metrics.energy import EnergyCollector
from taxbreak_vllm.service.metrics.exposition import OPENMETRICS, Exposition
from taxbreak_vllm.service.processes.energy import EnergyMeter
from taxbreak_vllm.service.processes.supervisor import Supervisor, analyzer_command, archiver_command, replayer_command
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

if TYPE_CHECKING:
    from taxbreak_vllm.service.otlp.exporter import OtlpExporter

logger = logging.getLogger("taxbreak.service")

_GRACE_S = 1
_OTLP_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_OTLP_VARIABLES = [f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT" for signal in ("", "TRACES_", "METRICS_")]
_METRICS = {200: {"content": {OPENMETRICS: {"schema": {"type": "string"}}}}} | errors(HTTPStatus.SERVICE_UNAVAILABLE)


def create_app(
    settings: Settings, *, supervisor: Supervisor | None = None, now_ns: Callable[[], int] = time.time_ns
) -> FastAPI:
    """Build the sidecar's app; the analyzer lives as long as the app's lifespan."""
    analyzer = supervisor or Supervisor(analyzer_command(settings))
    replayer = Supervisor(replayer_command(settings)) if settings.replay and supervisor is None else None
    archiver = Supervisor(archiver_command(settings)) if settings.archive and supervisor is None else None
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    collector = TaxbreakCollector.of(settings, spool, now_ns=now_ns)
    exporter = _otlp_exporter(settings, collector, spool)
    meter = EnergyMeter(spool, now_ns=now_ns)
    archived = ArchiveCollector.of(settings, now_ns=now_ns)
    others = [other for other in (exporter, archived) if other is not None]
    exposition = Exposition(collector, EnergyCollector(meter.joules), *others)
    traces = TraceReads(spool, settings.baselines_path)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        processes = [process for process in (analyzer, replayer, archiver, exporter, meter) if process is not None]
        for process in processes:
            process.start()
        try:
            yield
        finally:
            await asyncio.gather(*(asyncio.to_thread(process.close) for process in (*processes, traces)))

    # The documentation pages of FastAPI load scripts from other hosts, so there are none.
    app = FastAPI(title="taxbreak", version=package_version(), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Compressed)
    sessions = Sessions(now_ns)
    keys = Keys.of(settings, sessions=sessions, now_ns=now_ns)
    # `include_router` would build every route, and the models of its answers, once more.
    app.routes.extend(
        create_router(
            settings,
            keys=keys,
            traces=traces,
            num_restarts=lambda: analyzer.num_restarts,
            energy=meter.told,
            now_ns=now_ns,
        ).routes
    )

    async def answer_error(_request: Request, error: Exception) -> Response:
        return problem_response(error)

    for kind in (HTTPException, TaxbreakError, sqlite3.DatabaseError, Exception):
        app.add_exception_handler(kind, answer_error)

    @app.get("/metrics", response_class=PlainTextResponse, responses=_METRICS)
    def metrics(request: Request) -> Response:
        """The metrics, as Prometheus text or as OpenMetrics with exemplars."""
        text, content_type = exposition.write(request.headers.get("Accept", ""))
        return Response(text, media_type=content_type)

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> Response:
        """Whether the sidecar answers at all; the analyzer is told of by `status`."""
        return PlainTextResponse("ok\n")

    app.routes.extend(create_page_router(settings, spool, keys=keys, sessions=sessions, now_ns=now_ns).routes)
    return app


def serve(settings: Settings) -> None:
    """Run the sidecar until SIGTERM or Ctrl-C, with its address on standard error once it is listening.

    Raises TaxbreakError where the port is taken, SettingsError for a host there is not, and where spool or results
    cannot be written SpoolError or SettingsError.
    """
    _check_spool(settings)
    if settings.archive:
        check(settings.archive)
    with Results(settings.results_path):
        pass
    listener = listen(settings.host, settings.port)
    config = uvicorn.Config(
        create_app(settings), log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_S
    )
    # uvicorn sends itself the signal again once it has shut down in order, and that is no failure. Not sys.exit: what
    # it raises while the app starts is swallowed there. What we started ends when its standard input closes.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def _otlp_exporter(settings: Settings, collector: TaxbreakCollector, spool: Spool) -> "OtlpExporter | None":
    """Make the exporter where one is asked for; raises SettingsError where the option is and the extra is not."""
    if settings.otlp is None and not any(os.environ.get(name) for name in _OTLP_VARIABLES):
        return None
    try:
        from taxbreak_vllm.service.otlp.exporter import OtlpExporter
    except ImportError as error:
        reason = f"exporting by OTLP needs {error.name}: pip install 'taxbreak-vllm[otlp]'"
        if settings.otlp is None:  # the variables may be meant for somebody else
            logger.warning("taxbreak: %s", reason)
            return None
        raise SettingsError(reason) from None
    interval_ms = os.environ.get(_OTLP_INTERVAL, "15000")
    if not interval_ms.isdecimal() or interval_ms == "0":
        raise SettingsError(f"{_OTLP_INTERVAL}={interval_ms}: the milliseconds between two exports")
    return OtlpExporter(
        collector,
        settings.results_path,
        spool,
        window_ns=settings.window_s * 10**9,
        interval_s=int(interval_ms) / 1000,
        url=settings.otlp,
    )


def _check_spool(settings: Settings) -> None:
    Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures).make()
    try:
        with tempfile.TemporaryFile(dir=settings.spool):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise SpoolError(
            f"{settings.spool}: cannot write here: {reason}; set TAXBREAK_SPOOL to another folder"
        ) from None


def listen(host: str, port: int, *, path: str = "") -> socket.socket:
    """Listen, and say on standard error where; raises TaxbreakError where the port is taken, SettingsError for a host
    there is not.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((str(address[0]), port), family=family)
    except (socket.gaierror, UnicodeError) as error:
        raise SettingsError(f"TAXBREAK_HOST={host}: no address of this machine: {error}") from None
    except OSError as error:
        reason = error.strerror or error
        raise TaxbreakError(
            f"{host}:{port}: cannot listen: {reason}; set TAXBREAK_HOST or TAXBREAK_PORT to another, 0 for any port"
        ) from None
    name, number = listener.getsockname()[:2]
    sys.stderr.write(f"taxbreak: listening on http://{f'[{name}]' if ':' in name else name}:{number}{path}\n")
    sys.stderr.flush()
    return listener
