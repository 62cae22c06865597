"""The route of the batch from which on the device decides, and what the page shows of it.

In: the newest recorded steps of one start of a server: another model, or other settings, turn elsewhere.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from taxbreak_vllm.insight.transition import transitions
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.transition import Transitions
from taxbreak_vllm.service.http.openapi import answer
from taxbreak_vllm.service.http.router import RouteContext, json_response
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import WindowS

MAX_COMPARED_STEPS = 2000  # the newest


def add_transition_route(router: APIRouter, context: RouteContext) -> None:
    """Add `GET transition`."""

    @router.get("/transition", response_model=Transitions, responses=answer(Transitions))
    def transition(
        results: Annotated[Results, Depends(context.results)],
        phase: Phase | None = None,
        window_s: Annotated[WindowS | None, Query(description="TAXBREAK_WINDOW_S by default")] = None,
        server_id: Annotated[str | None, Query(description="the one with the newest step by default")] = None,
    ) -> Response:
        """From which size of batch on the device decides how long a step takes, phase by phase, and what tells it."""
        since_ns = context.now_ns() - (window_s or context.settings.window_s) * 10**9
        return json_response(read_transitions(results, since_ns=since_ns, phase=phase, server_id=server_id))


def read_transitions(
    results: Results, *, since_ns: int | None, phase: Phase | None = None, server_id: str | None = None
) -> Transitions:
    """Find the transitions of one start of a server: of the one named, else of the one with the newest step.

    They are of the newest `MAX_COMPARED_STEPS`.
    """
    rows = results.sizes(since_ns=since_ns, phase=phase, server_id=server_id, limit=MAX_COMPARED_STEPS)
    if not rows:
        return Transitions(server_id=server_id or "", reason="no step was analyzed in this window")
    newest = rows[0]
    own = [row.step for row in rows if row.server_id == newest.server_id]
    found = transitions(own)
    return Transitions(
        transitions=found,
        model_name=newest.series.model_name,
        server_id=newest.server_id,
        reason=None if found else "its steps had nothing to do",
    )
