"""The routes that take a step apart, as the page and other tools show it: its instants, its chains, its stacks.

`processes.trace_reader` reads the capture's trace in a child, one at a time and for a bounded time, so that neither the
event loop nor the sidecar's memory sees a trace.
"""

import asyncio
import sys
from collections import OrderedDict
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response

from taxbreak_vllm.model.stacks import HostStacks
from taxbreak_vllm.output.page.named import NamedChains, NamedTimeline
from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.router import RouteContext

_LIMIT_S = 60.0
_MAX_KEPT, _MAX_KEPT_BYTES = 32, 1_000_000  # answers, and how long each may be


class ProfileFormat(StrEnum):
    """What reads a profile: pprof, Pyroscope and Parca, or speedscope."""

    PPROF = "pprof"
    SPEEDSCOPE = "speedscope"


_FILES = {ProfileFormat.PPROF: ("application/gzip", "pb.gz"), ProfileFormat.SPEEDSCOPE: ("application/json", "json")}

_PROFILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {media_type: {} for media_type, _ in _FILES.values()}, "description": "the file"}
}


def add_timeline_routes(router: APIRouter, context: RouteContext) -> None:
    """Add what there is below `GET steps/{step_id}` of a step taken apart."""
    baselines = str(context.settings.baselines_path)
    kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
    one_at_a_time = asyncio.Semaphore(1)

    async def read_trace(what: str, step_id: str) -> bytes:
        async with one_at_a_time:
            if found := kept.get((what, step_id)):
                return found
            capture = await asyncio.to_thread(context.spool.find, step_id)
            if capture is None:
                raise Problem(HTTPStatus.NOT_FOUND, "no such capture in the spool; the oldest are evicted")
            found = await _run(what, str(capture.path), baselines)
            if len(found) <= _MAX_KEPT_BYTES:
                kept[what, step_id] = found
                while len(kept) > _MAX_KEPT:
                    kept.popitem(last=False)
            return found

    @router.get(
        "/steps/{step_id}/timeline",
        response_model=NamedTimeline,
        responses=answer(NamedTimeline) | errors(HTTPStatus.NOT_FOUND),
    )
    async def timeline(step_id: str) -> Response:
        """One step instant by instant: the host by component, the device at work or idle by cause, its kernels."""
        return Response(await read_trace("timeline", step_id), media_type="application/json")

    @router.get(
        "/steps/{step_id}/fusion",
        response_model=NamedChains,
        responses=answer(NamedChains) | errors(HTTPStatus.NOT_FOUND),
    )
    async def fusion(step_id: str) -> Response:
        """The kernels of one step that always run one after another."""
        return Response(await read_trace("fusion", step_id), media_type="application/json")

    @router.get(
        "/steps/{step_id}/stacks",
        response_model=HostStacks,
        responses=answer(HostStacks) | errors(HTTPStatus.NOT_FOUND),
    )
    async def stacks(step_id: str) -> Response:
        """The ΔFT of one step frame by frame: Python functions, where the capture had stacks, and ops."""
        return Response(await read_trace("stacks", step_id), media_type="application/json")

    @router.get(
        "/steps/{step_id}/profile",
        response_class=Response,
        responses=_PROFILE | errors(HTTPStatus.NOT_FOUND),
    )
    async def profile(step_id: str, format: ProfileFormat = ProfileFormat.PPROF) -> Response:
        """One step as a file for a profiler: its ΔFT as pprof has it, or all its threads for speedscope."""
        media_type, suffix = _FILES[format]
        headers = {"Content-Disposition": f'attachment; filename="{step_id}.{format}.{suffix}"'}
        return Response(await read_trace(format, step_id), media_type=media_type, headers=headers)


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
