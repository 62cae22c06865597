"""Ask a running server for steps over HTTP and wait for their breakdown."""

import time
from collections.abc import Callable
from contextlib import suppress

import httpx

from taxbreak_vllm.errors import TaxbreakError
from taxbreak_vllm.model import Breakdown

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
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    wish = {"steps": steps, "phase": phase, "timeout_s": timeout_s, "stacks": stacks, "server_id": server_id}
    with httpx.Client(base_url=url.rstrip("/") + "/v1/taxbreak/", headers=headers, timeout=10) as client:
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


def _ask(client: httpx.Client, method: str, path: str, body: object = None) -> dict[str, object]:
    try:
        response = client.request(method, path, json=body)
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
