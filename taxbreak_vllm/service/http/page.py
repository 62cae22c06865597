"""The page at `/`: what to know first, the window's balance per phase, advice, requests, steps, servers, and a form.

Rendered on the server by `page.render`; it refreshes itself. Totals are those of `GET breakdown`. A step's instants and
chains are fetched when they are looked at (`timelines`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from taxbreak_vllm.insight.headline import headline
from taxbreak_vllm.insight.requests import newest, slow, typical
from taxbreak_vllm.insight.second import device_second
from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.output.page.render import render
from taxbreak_vllm.output.page.server import requests_view, second_view
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
    phase_view,
)
from taxbreak_vllm.output.text.headline import first_sentence
from taxbreak_vllm.service.http.advice import read_advice
from taxbreak_vllm.service.http.keys import Keys
from taxbreak_vllm.service.http.login import login_route
from taxbreak_vllm.service.http.sessions import Access, Sessions, WrongKeys
from taxbreak_vllm.service.http.waterfalls import why_none
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.service.results.rows import StepRow
from taxbreak_vllm.service.results.server import window_hdbi
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.service.results.window import MAX_STEPS, Window
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

LISTED_STEPS = 20


def create_page_router(
    settings: Settings, spool: Spool, *, keys: Keys, sessions: Sessions, now_ns: Callable[[], int]
) -> APIRouter:
    """Build the router of the one route `/`; where there are keys, a form asks for one first."""
    route_class = login_route(keys, sessions, WrongKeys(now_ns))
    router = APIRouter(route_class=route_class, include_in_schema=False)  # what is for people is no API

    @router.get("/", response_class=HTMLResponse)
    def show(request: Request) -> Response:
        """The page."""
        with Results(settings.results_path) as results:
            article = read_article(results, spool, window_s=settings.window_s, has_key=keys.are_set, now_ns=now_ns())
        if article.live is not None and keys.access_of(request) == Access.READ:
            article = replace(article, live=replace(article.live, why_read_only=keys.why_read_only))
        document, headers = page(article)
        return Response(document, media_type="text/html", headers=headers)

    return router


def read_article(results: Results, spool: Spool, *, window_s: int, has_key: bool, now_ns: int) -> Article:
    """Read the window that ends now."""
    since_ns = now_ns - window_s * 10**9
    rows = results.steps(since_ns=since_ns, limit=MAX_POINTS)
    every = results.window(since_ns=since_ns, limit=MAX_STEPS, listed=0)
    of_phase = _by_phase(results, every, since_ns=since_ns)
    whole = every.breakdown
    return Article(
        title=whole.source.model_name or "host and device of vLLM",
        facts=facts_of(whole),
        advice=read_advice(results, spool, since_ns=since_ns, now_ns=now_ns),
        phases=tuple(phase_view(phase, found.num_steps, found.breakdown.total) for phase, found in of_phase.items()),
        total=whole.total,
        steps=tuple(map(_step_line, results.steps(limit=LISTED_STEPS))),
        num_steps=every.num_steps,
        history=tuple(map(_point, rows)),
        history_is_time=True,
        calibration=tuple(calibration_words(whole.calibration)),
        coverage=tuple(coverage_words(whole.coverage)),
        notes=tuple(dict.fromkeys((*whole.notes, *whole.total.notes))),
        live=_read_live(results, spool, every, of_phase, window_s=window_s, has_key=has_key, now_ns=now_ns),
    )


def _read_live(
    results: Results,
    spool: Spool,
    every: Window,
    of_phase: Mapping[Phase, Window],
    *,
    window_s: int,
    has_key: bool,
    now_ns: int,
) -> Live:
    """Read what the servers that run say of themselves, beside the steps of the window."""
    states = spool.states()
    alive = live(states, now_ns=now_ns)
    engines, frontends = live(spool.engine_states(), now_ns=now_ns), live(spool.frontend_states(), now_ns=now_ns)
    recorded: dict[str, dict[Phase, StepBreakdown]] = {}
    for server_id in {state.server_id for state in engines}:
        is_all = every.breakdown.source.server_id == server_id
        own = of_phase if is_all else _by_phase(results, every, since_ns=now_ns - window_s * 10**9, server_id=server_id)
        recorded[server_id] = {phase: window.breakdown.total for phase, window in own.items()}
    seconds = [(state, device_second(state, recorded[state.server_id])) for state in engines]
    waterfalls = newest(one for state in frontends for one in spool.waterfalls(state.server_id, state.api))
    request = typical(waterfalls, frontends)
    known = [second for _, second in seconds if second is not None]
    return Live(
        window_s=window_s,
        has_key=has_key,
        lead=first_sentence(headline(known, request, engines=engines, num_workers=len(alive))),
        servers=tuple(sorted({state.server.server_id for state in alive if state.enabled})),
        workers=tuple(_worker_line(state, is_live=state in alive) for state in states),
        hdbi_server=window_hdbi(every, engines),
        seconds=tuple(second_view(state, second) for state, second in seconds),
        requests=requests_view(request, slow(waterfalls), why_none(frontends)),
    )


def _by_phase(results: Results, every: Window, *, since_ns: int, server_id: str | None = None) -> dict[Phase, Window]:
    """Return the steps of each phase that a window has, of one server or of all."""
    windows = {
        phase: results.window(
            since_ns=since_ns, phase=phase, server_id=server_id, limit=MAX_STEPS, listed=0, with_ops=False
        )
        for phase in Phase
        if phase in every.balances
    }
    return {phase: window for phase, window in windows.items() if window.num_steps}


def page(article: Article) -> tuple[str, dict[str, str]]:
    """Return the document and the headers it needs."""
    document, policy = render([article])
    return document, {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
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
