"""The routes under /v1/taxbreak, the same on the sidecar and on vLLM's own server: JSON out of the results.

They read SQLite in the thread pool and never analyze; bodies of any size leave as bytes that msgspec wrote.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

import taxbreak_vllm
from taxbreak_vllm.errors import SpoolError
from taxbreak_vllm.model import CaptureRequest, Phase
from taxbreak_vllm.service.control import add_control_routes
from taxbreak_vllm.service.problems import Problem, problem_route
from taxbreak_vllm.service.results import CaptureRow, Results
from taxbreak_vllm.service.servers import choose, live, recording
from taxbreak_vllm.service.window import merge
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool import Spool

PREFIX = "/v1/taxbreak"
MAX_MERGED_STEPS = 2000  # decoding them takes a second of one core

_ANALYSIS_GRACE_NS = 60 * 10**9
_YEAR_S = 366 * 86400


class CaptureBody(BaseModel):
    """The wish for the next `steps` steps of one server."""

    model_config = ConfigDict(extra="forbid")

    steps: StrictInt = Field(default=5, ge=1, le=256, description="how many steps to record, on each rank")
    phase: Phase | None = Field(default=None, description="only steps of this phase; by default any but idle")
    timeout_s: float = Field(default=60, ge=1, le=3600, description="give up after this many seconds")
    stacks: StrictBool = Field(default=False, description="with Python stacks, which slows the steps 4-8 times")
    server_id: str | None = Field(default=None, description="which server, where several are running")


def create_router(
    settings: Settings,
    *,
    server_id: Callable[[], str | None] = lambda: None,
    num_restarts: Callable[[], int] = lambda: 0,
    now_ns: Callable[[], int] = time.time_ns,
) -> APIRouter:
    """Build the router; `server_id` names the server asked for steps where a request names none."""
    key = settings.api_key
    router = APIRouter(
        prefix=PREFIX,
        tags=["taxbreak"],
        route_class=problem_route(key),
        dependencies=[Security(HTTPBearer(auto_error=False))] if key else [],
    )
    spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)

    def open_results() -> Iterator[Results]:
        with Results(settings.results_path) as results:
            yield results

    Store = Annotated[Results, Depends(open_results)]

    @router.get("/status")
    def status(results: Store) -> Response:
        """Servers, spool and analysis at a glance."""
        now = now_ns()
        states = spool.states()
        alive = live(states, now_ns=now)
        captures = spool.captures()
        return _json(
            {
                "version": taxbreak_vllm.__version__,
                "now_unix_ns": now,
                "window_s": settings.window_s,
                "servers": [{"live": state in alive, **msgspec.to_builtins(state)} for state in states],
                "spool": {
                    "captures": len(captures),
                    "pending": sum(not capture.is_analyzed for capture in captures),
                    "bytes": sum(capture.size_bytes() for capture in captures),
                },
                "results": {"steps": results.num_steps()},
                "analyzer": {"restarts": num_restarts()},
            }
        )

    @router.get("/breakdown")
    def breakdown(
        results: Store,
        phase: Phase | None = None,
        window_s: Annotated[int | None, Query(ge=1, le=_YEAR_S)] = None,
        server_id: str | None = None,
    ) -> Response:
        """All steps recorded in the last `window_s` seconds as one breakdown; `TAXBREAK_WINDOW_S` by default."""
        since_ns = now_ns() - (window_s or settings.window_s) * 10**9
        parts = results.breakdowns(since_ns=since_ns, phase=phase, server_id=server_id, limit=MAX_MERGED_STEPS)
        notes = ["no step was analyzed in this window"] if not parts else []
        if len(parts) == MAX_MERGED_STEPS:
            notes.append(f"only the newest {MAX_MERGED_STEPS} steps of this window are counted")
        return _raw(merge(parts, notes=notes).to_json())

    @router.get("/steps")
    def steps(
        results: Store, limit: Annotated[int, Query(ge=1, le=1000)] = 100, phase: Phase | None = None
    ) -> Response:
        """The newest analyzed steps, newest first."""
        return _json({"steps": results.steps(phase=phase, limit=limit)})

    @router.get("/steps/{step_id}")
    def step(results: Store, step_id: str) -> Response:
        """The breakdown of one step."""
        data = results.breakdown(step_id)
        if data is None:
            failure = results.failure(step_id)
            raise Problem(
                HTTPStatus.NOT_FOUND, f"its capture was set aside: {failure}" if failure else "no such analyzed step"
            )
        return _raw(data)

    @router.get("/steps/{step_id}/trace")
    def trace(step_id: str) -> Response:
        """The raw trace of one step, gzip-compressed, as Perfetto opens it."""
        capture = spool.find(step_id)
        try:
            data = capture.trace_path.read_bytes() if capture else None
        except FileNotFoundError:
            data = None
        if data is None:
            raise Problem(HTTPStatus.NOT_FOUND, "no such capture in the spool; the oldest are evicted")
        name = f'attachment; filename="{step_id}.json.gz"'
        return Response(data, media_type="application/gzip", headers={"Content-Disposition": name})

    @router.post("/captures", status_code=HTTPStatus.ACCEPTED)
    def ask(results: Store, request: Request, body: CaptureBody) -> Response:
        """Ask a running server for its next steps."""
        now = now_ns()
        target = choose(recording(live(spool.states(), now_ns=now)), body.server_id or server_id())
        wish = CaptureRequest(
            capture_id=uuid.uuid4().hex,
            steps=body.steps,
            phase=body.phase,
            stacks=body.stacks,
            created_unix_ns=now,
            expires_unix_ns=now + int(body.timeout_s * 1e9),
        )
        running = results.add_capture(target, wish)
        if running is not None:
            raise Problem(HTTPStatus.CONFLICT, "a capture of this server is running", capture_id=running)
        try:
            spool.put_request(target, wish)
        except SpoolError:
            results.cancel_capture(wish.capture_id)
            raise
        location = f"{request.url.path.rstrip('/')}/{wish.capture_id}"
        return _json(
            _describe(_find(results, wish.capture_id), now),
            status_code=HTTPStatus.ACCEPTED,
            headers={"Location": location},
        )

    @router.get("/captures")
    def captures(results: Store) -> Response:
        """The newest requests for steps, newest first."""
        return _json({"captures": [_describe(row, now_ns()) for row in results.captures()]})

    @router.get("/captures/{capture_id}")
    def capture(results: Store, capture_id: str) -> Response:
        """How far a request has come, and its breakdown once it has ended."""
        row = _find(results, capture_id)
        found = _describe(row, now_ns())
        if found["status"] != "running" and (parts := results.breakdowns(capture_id=capture_id)):
            found["breakdown"] = merge(parts).to_builtins()
        return _json(found)

    @router.delete("/captures/{capture_id}")
    def cancel(results: Store, capture_id: str) -> Response:
        """Take a request back; one that has ended stays as it is."""
        row = _find(results, capture_id)
        if _status(row, now_ns()) == "running":
            spool.cancel_request(row.server_id, capture_id)
            results.cancel_capture(capture_id)
        return _json(_describe(_find(results, capture_id), now_ns()))

    add_control_routes(router, spool, server_id=server_id, now_ns=now_ns)
    return router


def _find(results: Results, capture_id: str) -> CaptureRow:
    for row in results.captures(capture_id):
        return row
    raise Problem(HTTPStatus.NOT_FOUND, "no such capture")


def _status(row: CaptureRow, now_ns: int) -> str:
    if row.is_cancelled:
        return "cancelled"
    if row.settled >= row.steps:
        return "done"
    # What was recorded in time may be analyzed a little later.
    grace_ns = _ANALYSIS_GRACE_NS if row.recorded >= row.steps else 0
    return "running" if now_ns < row.expires_unix_ns + grace_ns else "expired"


def _describe(row: CaptureRow, now_ns: int) -> dict[str, object]:
    return {
        "id": row.capture_id,
        "status": _status(row, now_ns),
        "server_id": row.server_id,
        "steps": row.steps,
        "phase": row.phase,
        "stacks": row.stacks,
        "recorded": row.recorded,
        "analyzed": row.analyzed,
        "failed": row.settled - row.analyzed,
        "created_unix_ns": row.created_unix_ns,
        "expires_unix_ns": row.expires_unix_ns,
    }


def _json(value: object, *, status_code: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status_code=status_code, media_type="application/json", headers=headers)


def _raw(data: bytes) -> Response:
    return Response(data, media_type="application/json")
