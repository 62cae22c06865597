"""The routes that take a step apart, as the page and other tools show it: its instants, its chains, its stacks."""

from enum import StrEnum
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response

from taxbreak_vllm.model.stacks import HostStacks
from taxbreak_vllm.output.page.named import NamedChains, NamedTimeline
from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.router import RouteContext


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
    read_trace = context.traces.read

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
