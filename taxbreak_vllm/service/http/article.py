"""What the pages show: the window of one server that ends now, and one recorded step.

In: results, spool. Out: `Article`s. Totals are those of `GET breakdown` of the same server. Raises a `Problem` for a
step that is not there.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import urlencode

import msgspec

from taxbreak_vllm.insight.headline import headline
from taxbreak_vllm.insight.requests import newest, slow, typical
from taxbreak_vllm.insight.second import device_second
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.output.page.advice import advice_view
from taxbreak_vllm.output.page.limit import limits_view
from taxbreak_vllm.output.page.server import requests_view, second_view
from taxbreak_vllm.output.page.step import step_article
from taxbreak_vllm.output.page.view import (
    MAX_POINTS,
    Article,
    Live,
    Point,
    ServerLink,
    StepLine,
    WorkerLine,
    calibration_words,
    coverage_words,
    facts_of,
    once,
    phase_view,
)
from taxbreak_vllm.output.text.headline import first_sentence, remedy_sentence
from taxbreak_vllm.service.http.advice import read_advice
from taxbreak_vllm.service.http.choice import Choice, Running, choices, choose
from taxbreak_vllm.service.http.limit import read_limits
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.transition import read_transitions
from taxbreak_vllm.service.http.waterfalls import why_none
from taxbreak_vllm.service.results.rows import StepRow
from taxbreak_vllm.service.results.server import window_hdbi
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.service.results.window import MAX_STEPS, Window
from taxbreak_vllm.spool.spool import Spool

LISTED_STEPS = 20


def read_article(
    results: Results,
    spool: Spool,
    *,
    window_s: int,
    url: str,
    has_key: bool,
    now_ns: int,
    model_name: str | None = None,
    server_id: str | None = None,
) -> Article:
    """Read the window of one server: of the one that is named, else of the one that runs and was started last.

    `url` is where the page was asked for.
    """
    since_ns = now_ns - window_s * 10**9
    running = Running.read(spool, now_ns=now_ns)
    found = choices(running, results.servers(since_ns=since_ns))
    chosen = choose(found, model_name=model_name, server_id=server_id)
    own = chosen.server_id
    every = results.window(since_ns=since_ns, server_id=own, limit=MAX_STEPS, listed=0)
    of_phase = _by_phase(results, every, since_ns=since_ns, server_id=own)
    whole = every.breakdown
    report = read_advice(results, spool, since_ns=since_ns, now_ns=now_ns, server_id=own)
    return Article(
        title=chosen.model_name or "host and device of vLLM",
        facts=(*([f"server {own}"] if len(found) > 1 else []), *(facts_of(whole) if every.num_steps else ())),
        advice=advice_view(report),
        phases=tuple(phase_view(phase, found.num_steps, found.breakdown.total) for phase, found in of_phase.items()),
        total=whole.total,
        steps=tuple(map(_step_line, results.steps(server_id=own, limit=LISTED_STEPS))),
        num_steps=every.num_steps,
        history=tuple(map(_point, results.steps(since_ns=since_ns, server_id=own, limit=MAX_POINTS))),
        history_is_time=True,
        transitions=read_transitions(results, since_ns=since_ns, server_id=own).transitions,
        calibration=tuple(calibration_words(whole.calibration)),
        coverage=tuple(coverage_words(whole.coverage)),
        notes=once((*whole.notes, *whole.total.notes)),
        limits=limits_view(read_limits(results, since_ns=since_ns, server_id=own).phases),
        live=replace(
            _read_live(spool, every, of_phase, running.of(own)),
            remedy=remedy_sentence(report),
            window_s=window_s,
            has_key=has_key,
            server_id=own,
            choice=_links(found, chosen),
            workers=tuple(_worker_line(state, is_live=state in running.workers) for state in spool.states()),
            worker_notes=tuple(_worker_notes(running.workers)),
            spool=str(spool.root),
            capture=_capture_command(url, has_key=has_key, server_id=own if len(found) > 1 else ""),
            is_running=bool(running.workers or running.engines or running.frontends),
        ),
    )


def read_step_article(results: Results, spool: Spool, step_id: str) -> Article:
    """Read one recorded step; raises a `Problem` where there is none that this version can read."""
    data = results.breakdown(step_id)
    if data is None:
        failure = results.failure(step_id)
        why = f"its capture was set aside: {failure}" if failure else "no such step, or no more"
        if failure is None and spool.find(step_id) is not None:
            why = "it is still being analyzed: look again in a moment"
        raise Problem(HTTPStatus.NOT_FOUND, why)
    try:
        breakdown = Breakdown.from_json(data)
    except msgspec.ValidationError:
        raise Problem(HTTPStatus.NOT_FOUND, "another version of taxbreak wrote this step") from None
    (row,) = results.steps(step_id=step_id, limit=1)
    return step_article(
        breakdown,
        step_id=step_id,
        started_unix_ns=row.started_unix_ns,
        all_steps=_href(row.model_name, row.server_id),
        has_trace=spool.find(step_id) is not None,
    )


def _read_live(spool: Spool, every: Window, of_phase: Mapping[Phase, Window], running: Running) -> Live:
    """Read what one server that runs says of itself, beside its steps of the window."""
    recorded = {phase: window.breakdown.total for phase, window in of_phase.items()}
    seconds = [(state, device_second(state, recorded)) for state in running.engines]
    waterfalls = newest(one for state in running.frontends for one in spool.waterfalls(state.server_id, state.api))
    request = typical(waterfalls, running.frontends)
    known = [second for _, second in seconds if second is not None]
    return Live(
        lead=first_sentence(headline(known, request, engines=running.engines, num_workers=len(running.workers))),
        hdbi_server=window_hdbi(every, running.engines),
        seconds=tuple(second_view(state, second) for state, second in seconds),
        requests=requests_view(request, slow(waterfalls), why_none(running.frontends)),
    )


def _capture_command(url: str, *, has_key: bool, server_id: str) -> str:
    which = ["--server-id", server_id] if server_id else []
    words = ["taxbreak", "capture", "--url", url, *which, "--steps", "4"]
    return f"{'TAXBREAK_API_KEY=KEY ' if has_key else ''}{shlex.join(words)}"


def _by_phase(results: Results, every: Window, *, since_ns: int, server_id: str) -> dict[Phase, Window]:
    """Return the steps of each phase that the window of a server has."""
    windows = {
        phase: results.window(
            since_ns=since_ns, phase=phase, server_id=server_id, limit=MAX_STEPS, listed=0, with_ops=False
        )
        for phase in Phase
        if phase in every.balances
    }
    return {phase: window for phase, window in windows.items() if window.num_steps}


def _links(found: list[Choice], chosen: Choice) -> tuple[ServerLink, ...]:
    """Link to every server; none where there is but one."""
    every = found if chosen in found or not chosen.server_id else [*found, chosen]
    if len(every) < 2:
        return ()
    return tuple(
        ServerLink(
            model_name=one.model_name,
            server_id=one.server_id,
            href=_href(one.model_name, one.server_id),
            is_live=one.is_live,
            is_chosen=one == chosen,
        )
        for one in every
    )


def _href(model_name: str, server_id: str) -> str:
    return f"?{urlencode({'model': model_name, 'server': server_id})}"


def _point(row: StepRow) -> Point:
    return Point(
        at=row.started_unix_ns / 1e9,
        name=row.step_id,
        phase=row.phase,
        hdbi=row.hdbi,
        delta_ft_ns=row.delta_ft_ns,
        delta_ct_ns=row.delta_ct_ns,
        delta_kt_ns=row.delta_kt_ns,
        window_ns=row.window_ns,
        exposed_ns=row.exposed_ns,
    )


def _step_line(row: StepRow) -> StepLine:
    return StepLine(
        name=row.step_id,
        phase=row.phase,
        graph_mode=row.graph_mode,
        window_ns=row.window_ns,
        hdbi=row.hdbi,
        exposed_ns=row.exposed_ns,
        active_ns=row.active_ns,
        href=f"steps/{row.step_id}",
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
    )


def _worker_notes(workers: Iterable[WorkerState]) -> Iterator[str]:
    """Say each note on recording once, and whose it is."""
    by_note: dict[str, list[WorkerState]] = {}
    for state in workers:
        for note in state.notes:
            by_note.setdefault(note, []).append(state)
    for note, states in by_note.items():
        first = states[0].server
        whose = f"{first.server_id}, rank {first.rank}" if len(states) == 1 else f"{len(states)} workers"
        yield f"{whose}: {note}"
