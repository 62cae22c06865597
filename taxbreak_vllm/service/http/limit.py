"""The route that tells what hardware allows the recorded steps, phase by phase, and where the rest of the time goes."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from taxbreak_vllm.model.limits import LimitReport
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.router import RouteContext, json_response
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.service.results.window import MAX_STEPS
from taxbreak_vllm.settings import WindowS


def add_limit_route(router: APIRouter, context: RouteContext) -> None:
    """Add `GET limit`."""

    @router.get("/limit", response_model=LimitReport, responses=answer(LimitReport) | errors(HTTPStatus.NOT_FOUND))
    def limit(
        results: Annotated[Results, Depends(context.results)],
        phase: Phase | None = None,
        window_s: Annotated[WindowS | None, Query(description="TAXBREAK_WINDOW_S by default")] = None,
        server_id: Annotated[str | None, Query(max_length=200)] = None,
    ) -> Response:
        """Each phase's bar: hard limit, kernels above it, exposed host tax, other idle, unknown, in ns; MFU and MBU."""
        now_ns = context.now_ns()
        since_ns = now_ns - (window_s or context.settings.window_s) * 10**9
        if server_id is not None:
            states = live(context.spool.states(), now_ns=now_ns)
            known = {name for _, name in results.servers(since_ns=0)} | {state.server.server_id for state in states}
            if server_id not in known:
                raise Problem(HTTPStatus.NOT_FOUND, f"no such server: {', '.join(sorted(known)) or 'none is known'}")
        return json_response(read_limits(results, since_ns=since_ns, phase=phase, server_id=server_id))


def read_limits(
    results: Results, *, since_ns: int, phase: Phase | None = None, server_id: str | None = None
) -> LimitReport:
    """Add up the steps of a window."""
    phases = results.limits(since_ns=since_ns, phase=phase, server_id=server_id, limit=MAX_STEPS)
    num_steps = sum(each.num_steps for each in phases.values())
    return LimitReport(
        phases=phases,
        reason=None if phases else "no step was analyzed in this window",
        notes=(f"only the newest {MAX_STEPS} steps of this window are counted",) if num_steps == MAX_STEPS else (),
    )
