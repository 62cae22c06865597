"""The routes that take a step apart, as the page shows it: its instants and its chains, read from the capture's trace.

`processes.trace_reader` reads it in a child, one at a time and for a bounded time, so that neither the event loop nor
the sidecar's memory sees a trace.
"""

import asyncio
import sys
from collections import OrderedDict
from http import HTTPStatus

from fastapi import APIRouter, Response

from taxbreak_vllm.model.fusion import FusionReport
from taxbreak_vllm.model.timeline import StepTimeline
from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.router import RouteContext

_LIMIT_S = 60.0
_MAX_KEPT = 32  # answers, of at most a few 100 kB


def add_timeline_routes(router: APIRouter, context: RouteContext) -> None:
    """Add `GET steps/{step_id}/timeline` and `GET steps/{step_id}/fusion`."""
    baselines = str(context.settings.baselines_path)
    kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
    one_at_a_time = asyncio.Semaphore(1)

    async def read_trace(what: str, step_id: str) -> Response:
        async with one_at_a_time:
            if (what, step_id) not in kept:
                capture = await asyncio.to_thread(context.spool.find, step_id)
                if capture is None:
                    raise Problem(HTTPStatus.NOT_FOUND, "no such capture in the spool; the oldest are evicted")
                kept[what, step_id] = await _run(what, str(capture.path), baselines)
                while len(kept) > _MAX_KEPT:
                    kept.popitem(last=False)
        return Response(kept[what, step_id], media_type="application/json")

    @router.get(
        "/steps/{step_id}/timeline",
        response_model=StepTimeline,
        responses=answer(StepTimeline) | errors(HTTPStatus.NOT_FOUND),
    )
    async def timeline(step_id: str) -> Response:
        """One step instant by instant: the host by component, the device at work or idle by cause, its kernels."""
        return await read_trace("timeline", step_id)

    @router.get(
        "/steps/{step_id}/fusion",
        response_model=FusionReport,
        responses=answer(FusionReport) | errors(HTTPStatus.NOT_FOUND),
    )
    async def fusion(step_id: str) -> Response:
        """The kernels of one step that always run one after another."""
        return await read_trace("fusion", step_id)


async def _run(what: str, path: str, baselines: str) -> bytes:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "taxbreak_vllm.service.processes.trace_reader", what, path, baselines),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        answer, said = await asyncio.wait_for(child.communicate(), _LIMIT_S)
    except TimeoutError:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"its trace could not be read within {_LIMIT_S:.0f} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise Problem(HTTPStatus.NOT_FOUND, f"its trace cannot be read: {reason}")
    return answer
