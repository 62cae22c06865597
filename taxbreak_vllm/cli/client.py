"""Speak to a running server over HTTP: ask it for steps and wait for their breakdown, change how it records."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from taxbreak_vllm.model import defaults
from taxbreak_vllm.model.advice import AdviceReport
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.errors import SettingsError, TaxbreakError
from taxbreak_vllm.model.transition import Transitions
from taxbreak_vllm.model.worker import ControlState
from taxbreak_vllm.settings import checked_key

_POLL_S, _WAIT_S, _FETCH_S = 0.1, 10.0, 60.0
_TRAFFIC_NAME = re.compile(r"[a-z]+-[0-9]{1,9}-[0-9]{8}\.jsonl\.gz")

T = TypeVar("T")
Params = Mapping[str, str | int | float | bool | Sequence[str]]


class CaptureError(TaxbreakError):
    """A server could not be asked, or did not record what was asked for."""


class Unreachable(CaptureError):
    """Nobody answers at a server's address."""


@dataclass(frozen=True, slots=True)
class Captured:
    """The steps that came of a request; `gap` says what is missing, and `is_expired` whether for want of time.

    `advice` is the server's, None of one that does not advise; `engines` are the loops of those that run there.
    """

    breakdown: Breakdown
    gap: str = ""
    is_expired: bool = False
    advice: AdviceReport | None = None
    engines: tuple[EngineState, ...] = ()


class _Loops(msgspec.Struct):
    engines: list[EngineState]


class _Ticket(msgspec.Struct):
    id: str


class _Outcome(msgspec.Struct):
    status: str
    steps: int
    analyzed: int
    failed: int
    recorded: int = 0
    failure: str | None = None
    breakdown: Breakdown | None = None

    def gap(self) -> str:
        why = f": {self.failure}" if self.failure else ""
        if self.status != "done":
            return f"{self.analyzed} of {self.steps} steps came in time ({self.status}){why}"
        return f"{self.failed} of {self.steps} steps could not be analyzed{why}" if self.failed else ""


class _TrafficFile(msgspec.Struct):
    name: str


class _TrafficFiles(msgspec.Struct):
    server_id: str
    files: list[_TrafficFile]


class _Fault(msgspec.Struct):
    loc: list[str | int]
    msg: str


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""
    errors: list[_Fault] = []


def capture_steps(
    url: str,
    *,
    steps: int,
    phase: str | None = None,
    timeout_s: float = defaults.CAPTURE_TIMEOUT_S,
    stacks: bool = False,
    max_stall_ms: float | None = None,
    server_id: str | None = None,
    api_key: str | None = None,
    report: Callable[[int, int], None] = lambda recorded, analyzed: None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Captured:
    """Request `steps` steps, wait until they are recorded and analyzed, return their breakdown.

    `report` is told how many are, whenever it was asked.

    Raises CaptureError where the server cannot be reached, refuses, or has recorded and analyzed none in `timeout_s`
    (plus a few seconds for the analysis), SettingsError where it cannot be asked so. An interrupted wait takes the
    request back.
    """
    wish = {"steps": steps, "phase": phase, "timeout_s": timeout_s, "stacks": stacks, "server_id": server_id}
    wish["max_stall_ms"] = max_stall_ms
    with _connected(url, api_key) as client:
        body = {name: value for name, value in wish.items() if value is not None}
        capture_id = _ask(client, _Ticket, "POST", "captures", body).id
        deadline = now() + timeout_s + 15
        try:
            while True:
                outcome = _ask(client, _Outcome, "GET", f"captures/{capture_id}")
                report(outcome.recorded, outcome.analyzed)
                if outcome.status != "running" or now() > deadline:
                    break
                sleep(_POLL_S)
            if outcome.breakdown is None:
                raise CaptureError(f"{url}: {outcome.gap()}")
            return Captured(
                outcome.breakdown,
                outcome.gap(),
                is_expired=outcome.status != "done",
                advice=_advice(client, capture_id),
                engines=_engines(client, outcome.breakdown.source.server_id),
            )
        except BaseException:
            with suppress(httpx.HTTPError):
                client.delete(f"captures/{capture_id}")
            raise


def read(
    url: str,
    path: str,
    *,
    params: Params | None = None,
    api_key: str | None = None,
    wait_s: float = _WAIT_S,
) -> dict[str, Any]:
    """Return what a server says below /v1/taxbreak; raises CaptureError where it cannot be reached or refuses."""
    with _connected(url, api_key, wait_s=wait_s) as client:
        return _ask(client, dict[str, Any], "GET", path, params=params)


def control_server(
    url: str,
    *,
    enabled: bool | None = None,
    sample_every: int | None = None,
    overhead_budget_ratio: float | None = None,
    timeout_s: float = 10.0,
    server_id: str | None = None,
    api_key: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> ControlState:
    """Change how a server records, wait until its workers do, and return what holds then; without a change, now.

    Raises CaptureError where the server cannot be reached, refuses, or its workers have not taken the change within
    `timeout_s`; they take it later then.
    """
    change = {"enabled": enabled, "sample_every": sample_every, "overhead_budget_ratio": overhead_budget_ratio}
    given = {name: value for name, value in change.items() if value is not None}
    which = {} if server_id is None else {"server_id": server_id}
    with _connected(url, api_key) as client:
        if given:
            _ask(client, ControlState, "PUT", "control", given | which)
        deadline = now() + timeout_s
        while True:
            state = _ask(client, ControlState, "GET", "control", params=which)
            if state.applied or not given:
                return state
            if now() > deadline:
                raise CaptureError(f"{url}: the workers have not taken the change within {timeout_s:g} s")
            sleep(_POLL_S)


def read_advice(url: str, *, server_id: str | None = None, api_key: str | None = None) -> AdviceReport:
    """Return what a server advises; raises CaptureError where it cannot be reached or refuses."""
    with _connected(url, api_key) as client:
        return _ask(client, AdviceReport, "GET", "advice", params={} if server_id is None else {"server_id": server_id})


def read_transitions(
    url: str,
    *,
    server_id: str | None = None,
    phase: str | None = None,
    window_s: int | None = None,
    api_key: str | None = None,
) -> Transitions:
    """Return from which batch on a server's device decides; raises CaptureError where it cannot be reached."""
    wanted = {"server_id": server_id, "phase": phase, "window_s": window_s}
    params = {name: value for name, value in wanted.items() if value is not None}
    with _connected(url, api_key) as client:
        return _ask(client, Transitions, "GET", "transition", params=params)


def fetch_traffic(url: str, folder: Path, *, server_id: str | None = None, api_key: str | None = None) -> None:
    """Copy what a server has kept of its requests and steps into a folder; a file deleted meanwhile is left out.

    Raises CaptureError where it cannot be reached, refuses, or keeps none.
    """
    which = {} if server_id is None else {"server_id": server_id}
    with _connected(url, api_key, wait_s=_FETCH_S) as client:
        found = _ask(client, _TrafficFiles, "GET", "traffic", params=which)
        for file in found.files:
            if not _TRAFFIC_NAME.fullmatch(file.name):
                raise CaptureError(f"{url}: no answer of this version of taxbreak (a file named {file.name[:80]!r})")
            with client.stream("GET", f"traffic/{quote(found.server_id, safe='')}/{file.name}") as response:
                if response.status_code == HTTPStatus.NOT_FOUND:
                    continue
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                with (folder / file.name).open("wb") as target:
                    for piece in response.iter_raw():
                        target.write(piece)


def _advice(client: httpx.Client, capture_id: str) -> AdviceReport | None:
    try:
        return _ask(client, AdviceReport, "GET", "advice", params={"capture_id": capture_id})
    except TaxbreakError:  # an older server: it has recorded what was asked for nevertheless
        return None


def _engines(client: httpx.Client, server_id: str) -> tuple[EngineState, ...]:
    try:
        loops = _ask(client, _Loops, "GET", "iterations")
    except TaxbreakError:  # as above
        return ()
    return tuple(state for state in loops.engines if state.server_id == server_id)


@contextmanager
def _connected(url: str, api_key: str | None, *, wait_s: float = _WAIT_S) -> Iterator[httpx.Client]:
    """Open a client of our routes; what goes wrong between it and the server comes out as an error of ours."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {checked_key(api_key)}"}
    try:
        with httpx.Client(base_url=url.rstrip("/") + "/v1/taxbreak/", headers=headers, timeout=wait_s) as client:
            if not client.base_url.host:
                raise httpx.InvalidURL("it names no host")
            yield client
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:  # the last from a host's name
        raise SettingsError(f"{url!r}: not the URL of a server, as {defaults.URL} is: {error}") from error
    except httpx.HTTPError as error:
        raise Unreachable(f"{url}: cannot be reached ({error})") from error


def _ask(
    client: httpx.Client,
    kind: type[T],
    method: str,
    path: str,
    body: object = None,
    params: Params | None = None,
) -> T:
    response = client.request(method, path, json=body, params=params)
    if not response.is_success:
        raise _refusal(response)
    try:
        return msgspec.json.decode(response.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CaptureError(f"{response.url}: no answer of this version of taxbreak ({error})") from error


def _refusal(response: httpx.Response) -> TaxbreakError:
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = _Problem(detail=response.text[:200])
    faults = [f"{'.'.join(map(str, fault.loc[1:]))}: {fault.msg}" for fault in problem.errors[:1]]
    text = " ".join([str(response.status_code), *(faults or [problem.detail or problem.title])])
    kind = SettingsError if response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY else CaptureError
    return kind(f"{response.url}: {text}")
