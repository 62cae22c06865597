"""The page at `/`: the window's balance per phase, advice, newest steps, servers, and a form that asks for steps.

Rendered on the server by `page.render`; it refreshes itself. Totals are those of `GET breakdown`. A step's instants and
chains are fetched when they are looked at (`timelines`).
"""

from collections.abc import Callable
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.output.page.render import render
from taxbreak_vllm.output.page.view import (
    MAX_POINTS,
    Article,
    Live,
    Point,
    StepLine,
    WorkerLine,
    calibration_words,
    coverage_words,
    facts_of,
    loop_view,
    phase_view,
)
from taxbreak_vllm.service.http.advice import read_advice
from taxbreak_vllm.service.http.openapi import errors
from taxbreak_vllm.service.http.problems import Problem, check_token, problem_response
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.service.results.rows import StepRow
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.service.results.window import MAX_STEPS
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

LISTED_STEPS = 20

_ERRORS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.SERVICE_UNAVAILABLE)


def create_page_router(settings: Settings, spool: Spool, *, now_ns: Callable[[], int]) -> APIRouter:
    """Build the router of the one route `/`; a browser gives the key as the password of HTTP Basic."""
    router = APIRouter()

    @router.get("/", response_class=HTMLResponse, responses=errors(*_ERRORS))
    def show(request: Request) -> Response:
        """The page."""
        try:
            check_token(request, settings.api_key, with_basic=True)
        except Problem as error:
            return problem_response(error, challenge="Basic")
        with Results(settings.results_path) as results:
            has_key = settings.api_key is not None
            article = read_article(results, spool, window_s=settings.window_s, has_key=has_key, now_ns=now_ns())
        document, headers = page(article)
        return Response(document, media_type="text/html", headers=headers)

    return router


def read_article(results: Results, spool: Spool, *, window_s: int, has_key: bool, now_ns: int) -> Article:
    """Read the window that ends now."""
    since_ns = now_ns - window_s * 10**9
    rows = results.steps(since_ns=since_ns, limit=MAX_POINTS)
    phases = {balance.series.phase for balance in results.balances(since_ns=since_ns)}
    seen = [phase for phase in Phase if phase in phases]
    every, *of_phase = (
        results.window(since_ns=since_ns, phase=phase, limit=MAX_STEPS, listed=0, with_ops=phase is None)
        for phase in (None, *seen)
    )
    whole = every.breakdown
    states = spool.states()
    alive = live(states, now_ns=now_ns)
    return Article(
        title=whole.source.model_name or "host and device of vLLM",
        facts=facts_of(whole),
        advice=read_advice(results, spool, since_ns=since_ns, now_ns=now_ns),
        phases=tuple(
            phase_view(phase, found.num_steps, found.breakdown.total)
            for phase, found in zip(seen, of_phase, strict=True)
        ),
        total=whole.total,
        steps=tuple(map(_step_line, results.steps(limit=LISTED_STEPS))),
        num_steps=every.num_steps,
        history=tuple(map(_point, rows)),
        history_is_time=True,
        calibration=tuple(calibration_words(whole.calibration)),
        coverage=tuple(coverage_words(whole.coverage)),
        notes=tuple(dict.fromkeys((*whole.notes, *whole.total.notes))),
        live=Live(
            window_s=window_s,
            has_key=has_key,
            servers=tuple(sorted({state.server.server_id for state in alive if state.enabled})),
            workers=tuple(_worker_line(state, is_live=state in alive) for state in states),
            loops=tuple(loop_view(state) for state in live(spool.engine_states(), now_ns=now_ns)),
        ),
    )


def page(article: Article) -> tuple[str, dict[str, str]]:
    """Return the document and the headers it needs."""
    document, policy = render([article])
    return document, {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


def _point(row: StepRow) -> Point:
    return Point(
        at=row.started_unix_ns / 1e9,
        name=row.step_id,
        phase=row.phase,
        hdbi=row.hdbi,
        delta_ft_ns=row.delta_ft_ns,
        delta_ct_ns=row.delta_ct_ns,
        delta_kt_ns=row.delta_kt_ns,
        orchestration_ns=row.orchestration_ns,
        exposed_ns=row.exposed_ns,
    )


def _step_line(row: StepRow) -> StepLine:
    return StepLine(
        name=row.step_id,
        phase=row.phase,
        graph_mode=row.graph_mode,
        window_ns=row.window_ns,
        hdbi=row.hdbi,
        orchestration_ns=row.orchestration_ns,
        exposed_ns=row.exposed_ns,
        active_ns=row.active_ns,
        href=f"v1/taxbreak/steps/{row.step_id}",
    )


def _worker_line(state: WorkerState, *, is_live: bool) -> WorkerLine:
    return WorkerLine(
        server_id=state.server.server_id,
        rank=state.server.rank,
        model_name=state.server.model_name,
        state=("recording" if state.enabled else "timing only") if is_live else "stopped",
        num_steps=sum(histogram.num_steps for histogram in state.steps),
        num_samples=state.num_samples,
        num_dropped=sum(state.dropped.values()),
        overhead_ratio=state.overhead_ns / state.serving_ns if state.serving_ns else None,
        notes=state.notes if is_live else (),
    )
