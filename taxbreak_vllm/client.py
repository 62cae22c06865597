"""Speak to a running server over HTTP: ask it for steps and wait for their breakdown, change how it records."""

import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import msgspec

from taxbreak_vllm.errors import TaxbreakError
from taxbreak_vllm.model import Breakdown, ControlState

_POLL_S = 0.1


class CaptureError(TaxbreakError):
    """A server could not be asked, or did not record what was asked for."""


def capture_steps(
    url: str,
    *,
    steps: int,
    phase: str | None = None,
    timeout_s: float = 60.0,
    stacks: bool = False,
    server_id: str | None = None,
    api_key: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Breakdown:
    """Request `steps` steps, wait until they are recorded and analyzed, return their breakdown.

    Raises CaptureError where the server cannot be reached, refuses, or has not run enough such steps in `timeout_s`
    (plus a few seconds for the analysis). An interrupted wait takes the request back.
    """
    wish = {"steps": steps, "phase": phase, "timeout_s": timeout_s, "stacks": stacks, "server_id": server_id}
    with _connect(url, api_key) as client:
        capture_id = _ask(client, "POST", "captures", {k: v for k, v in wish.items() if v is not None})["id"]
        deadline = now() + timeout_s + 15
        try:
            while True:
                status = _ask(client, "GET", f"captures/{capture_id}")
                if status["status"] == "done":
                    return Breakdown.from_builtins(status["breakdown"])
                if status["status"] != "running" or now() > deadline:
                    raise CaptureError(
                        f"{url}: {status.get('analyzed', 0)} of {steps} steps"
                        f"{f' of phase {phase}' if phase else ''} came within {timeout_s:g} s ({status['status']})"
                    )
                sleep(_POLL_S)
        except BaseException:
            with suppress(httpx.HTTPError):
                client.delete(f"captures/{capture_id}")
            raise


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
    with _connect(url, api_key) as client:
        if given:
            _ask(client, "PUT", "control", given | which)
        deadline = now() + timeout_s
        while True:
            tree = _ask(client, "GET", "control", params=which)
            try:
                state = msgspec.convert(tree, ControlState)
            except msgspec.ValidationError as error:
                raise CaptureError(f"{url}: an answer of another version ({error})") from error
            if state.applied or not given:
                return state
            if now() > deadline:
                raise CaptureError(f"{url}: the workers have not taken the change within {timeout_s:g} s")
            sleep(_POLL_S)


def _connect(url: str, api_key: str | None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(base_url=url.rstrip("/") + "/v1/taxbreak/", headers=headers, timeout=10)


def _ask(
    client: httpx.Client, method: str, path: str, body: object = None, params: dict[str, str] | None = None
) -> dict[str, object]:
    try:
        response = client.request(method, path, json=body, params=params)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CaptureError(f"{client.base_url}: cannot be reached ({error})") from error
    try:
        tree = response.json()
    except ValueError:
        tree = None
    if not response.is_success or not isinstance(tree, dict):
        detail = tree.get("detail") or tree.get("title") if isinstance(tree, dict) else response.text[:200]
        raise CaptureError(f"{client.base_url}: {response.status_code} {detail}")
    return tree
