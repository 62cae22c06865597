"""The route of what-if: recorded steps of a server, each replayed under a change.

In: a change in the words of `taxbreak whatif`, and which steps. Out: a prediction or a refusal of each.
"""

import asyncio
from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.requests import WhatIfBody, WhatIfQuery
from taxbreak_vllm.service.http.responses import WhatIfs
from taxbreak_vllm.service.http.router import RouteContext, json_response
from taxbreak_vllm.service.results.store import Results

_CHANGE = {"host", "kernels", "graph", "fuse", "floor_us", "no_sync", "is_async", "compiled"}
_MAX_ROWS = 1000  # looked through for the newest step of each phase


def add_whatif_routes(router: APIRouter, context: RouteContext) -> None:
    """Add `GET whatif` and `POST whatif`."""

    async def replay(asked: WhatIfQuery) -> Response:
        step_ids = asked.step_id or await asyncio.to_thread(_newest, context, asked)
        change = asked.model_dump(include=_CHANGE)
        found = await context.traces.replay(list(dict.fromkeys(step_ids)), change, is_drawn=asked.timeline)
        return json_response({"answers": list(map(msgspec.Raw, found))})

    @router.get("/whatif", response_model=WhatIfs, responses=answer(WhatIfs) | errors(HTTPStatus.NOT_FOUND))
    async def whatif(asked: Annotated[WhatIfQuery, Query()]) -> Response:
        """What recorded steps would take under a change, within what interval, or why that can't be said."""
        return await replay(asked)

    @router.post(
        "/whatif",
        response_model=WhatIfs,
        responses=answer(WhatIfs) | errors(HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND),
    )
    async def whatif_of_body(asked: WhatIfBody) -> Response:
        """The same, asked for in JSON; nothing is changed by it, but a key that only reads is for GET."""
        return await replay(asked)


def _newest(context: RouteContext, asked: WhatIfQuery) -> list[str]:
    """Return the newest step of each phase, all of one server, whose capture is still there.

    Raises a 404 where there is none.
    """
    with Results(context.settings.results_path) as results:
        server_id = asked.server_id or context.server_id()
        rows = results.steps(phase=asked.phase, server_id=server_id, limit=_MAX_ROWS)
    rows = [row for row in rows if asked.capture_id in (None, row.capture_id)]
    if asked.phase is None:
        rows = [row for row in rows if row.phase is not Phase.IDLE]
    found: dict[Phase, str] = {}
    for row in rows:
        if row.server_id == rows[0].server_id and row.phase not in found and context.spool.find(row.step_id):
            found[row.phase] = row.step_id
    if not found:
        raise Problem(HTTPStatus.NOT_FOUND, "no recorded step fits, or its capture is evicted: record some")
    return [found[phase] for phase in Phase if phase in found]
