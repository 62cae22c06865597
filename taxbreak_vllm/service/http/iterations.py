"""The route that tells what the time between a worker's steps went to, for each engine that runs."""

from fastapi import APIRouter, Response

from taxbreak_vllm.service.http.openapi import answer
from taxbreak_vllm.service.http.responses import EngineLoop, Iterations
from taxbreak_vllm.service.http.router import RouteContext, json_response
from taxbreak_vllm.service.results.live import live


def add_iteration_routes(router: APIRouter, context: RouteContext) -> None:
    """Add `GET iterations`."""

    @router.get("/iterations", response_model=Iterations, responses=answer(Iterations))
    def iterations() -> Response:
        """The loops of the engines that run, since their start: what their iterations went to, in ns."""
        engines = live(context.spool.engine_states(), now_ns=context.now_ns())
        return json_response(Iterations(engines=[EngineLoop.of(state) for state in engines]))
