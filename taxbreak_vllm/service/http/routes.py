"""The routes under /v1/taxbreak, the same on the sidecar and on vLLM's own server: JSON out of the results.

They read SQLite, `traffic` files, in the thread pool and never analyze, but that `timelines` and `whatif` have a child
read traces.
Bodies leave as bytes that msgspec wrote, described by `openapi`.
"""

import time
from collections.abc import Callable, Sequence

from fastapi import APIRouter

from taxbreak_vllm.model.energy import EngineEnergy
from taxbreak_vllm.service.http.advice import add_advice_route
from taxbreak_vllm.service.http.captures import add_capture_routes
from taxbreak_vllm.service.http.control import add_control_routes
from taxbreak_vllm.service.http.iterations import add_iteration_routes
from taxbreak_vllm.service.http.keys import Keys
from taxbreak_vllm.service.http.limit import add_limit_route
from taxbreak_vllm.service.http.router import RouteContext, new_router
from taxbreak_vllm.service.http.status import add_status_route
from taxbreak_vllm.service.http.steps import add_step_routes
from taxbreak_vllm.service.http.timelines import add_timeline_routes
from taxbreak_vllm.service.http.trace_reads import TraceReads
from taxbreak_vllm.service.http.traffic import add_traffic_routes
from taxbreak_vllm.service.http.transition import add_transition_route
from taxbreak_vllm.service.http.waterfalls import add_request_routes
from taxbreak_vllm.service.http.whatif import add_whatif_routes
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool


def create_router(
    settings: Settings,
    *,
    keys: Keys | None = None,
    traces: TraceReads | None = None,
    server_id: Callable[[], str | None] = lambda: None,
    num_restarts: Callable[[], int] = lambda: 0,
    energy: Callable[[], Sequence[EngineEnergy] | None] = lambda: None,
    now_ns: Callable[[], int] = time.time_ns,
) -> APIRouter:
    """Build the router; `server_id` names the server asked for steps where a request names none.

    `keys` are those of the settings, as bearer tokens alone, unless given; who gives `traces` closes them.
    """
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    context = RouteContext(
        settings=settings,
        spool=spool,
        traces=traces or TraceReads(spool, settings.baselines_path),
        server_id=server_id,
        num_restarts=num_restarts,
        energy=energy,
        now_ns=now_ns,
    )
    router = new_router(Keys.of(settings) if keys is None else keys)
    for add in (
        *(add_status_route, add_step_routes, add_timeline_routes, add_iteration_routes, add_request_routes),
        *(add_capture_routes, add_control_routes, add_advice_route, add_limit_route, add_whatif_routes),
        *(add_transition_route, add_traffic_routes),
    ):
        add(router, context)
    return router
