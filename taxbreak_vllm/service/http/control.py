"""The routes that change a server's recording at run time: a wish into its spool, what its workers do about it out.

A control message travels as a request for steps does, so it reaches workers that are idle, saturated or draining, and
needs no call into vLLM. It holds until the server ends: one that starts anew begins with its environment's settings.
"""

import uuid
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response

from taxbreak_vllm.model.worker import Control, ControlState, WorkerControl, WorkerState
from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.requests import ControlBody
from taxbreak_vllm.service.http.router import RouteContext, json_response
from taxbreak_vllm.service.http.servers import choose
from taxbreak_vllm.service.results.live import live


def add_control_routes(router: APIRouter, context: RouteContext) -> None:
    """Add `GET control` and `PUT control`."""
    unclear = errors(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)

    def find(wanted: str | None) -> tuple[str, list[WorkerState]]:
        states = live(context.spool.states(), now_ns=context.now_ns())
        target = choose(sorted({state.server.server_id for state in states}), wanted or context.server_id())
        return target, [state for state in states if state.server.server_id == target]

    @router.get("/control", response_model=ControlState, responses=answer(ControlState) | unclear)
    def control(server_id: Annotated[str | None, Query(description="which server")] = None) -> Response:
        """How a server records, and whether all its workers have taken the last change."""
        target, states = find(server_id)
        return _answer(target, context.spool.read_control(target), states)

    @router.put(
        "/control",
        response_model=ControlState,
        responses=answer(ControlState) | unclear | errors(HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN),
    )
    def change(body: ControlBody) -> Response:
        """Change how a server records; its workers take it within a second, `applied` tells when all have."""
        target, states = find(body.server_id)
        wish = Control(
            control_id=uuid.uuid4().hex,
            enabled=body.enabled,
            sample_every=body.sample_every,
            overhead_budget_ratio=body.overhead_budget_ratio,
            updated_unix_ns=context.now_ns(),
        )
        return _answer(target, context.spool.put_control(target, wish), states)


def _answer(server_id: str, control: Control | None, states: list[WorkerState]) -> Response:
    workers = tuple(
        WorkerControl(
            engine=state.server.engine,
            rank=state.server.rank,
            **{name: getattr(state, name) for name in WorkerControl.__dataclass_fields__.keys() - {"engine", "rank"}},
        )
        for state in states
    )
    is_applied = control is None or all(worker.control_id == control.control_id for worker in workers)
    found = ControlState(server_id=server_id, applied=is_applied, control=control, workers=workers)
    return json_response(found)
