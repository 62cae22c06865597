"""Which of the running servers a request speaks to."""

from collections.abc import Sequence
from http import HTTPStatus

from taxbreak_vllm.model.worker import REVOCABLE, WorkerState
from taxbreak_vllm.service.http.problems import Problem


def recording(states: Sequence[WorkerState]) -> list[str]:
    """Return the ids of the servers that can be asked for steps; raises a 503 where all that run have it turned off."""
    found = sorted({state.server.server_id for state in states if state.enabled})
    reasons = {state.off_reason for state in states if state.off_reason}
    if reasons and not found:
        remedy = "taxbreak control --enable turns it on" if reasons & REVOCABLE else "taxbreak control says more"
        detail = f"recording is off ({', '.join(sorted(reasons))}); {remedy}"
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail)
    return found


def choose(servers: list[str], wanted: str | None) -> str:
    """Pick the server to speak to; raises a 503 where none runs, a 409 where several could be meant, else a 404."""
    if not servers:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "no running server records steps into this spool")
    if wanted is None and len(servers) == 1:
        return servers[0]
    if wanted is None:
        raise Problem(HTTPStatus.CONFLICT, "several servers are running: set server_id to one of them", servers=servers)
    if wanted not in servers:
        raise Problem(HTTPStatus.NOT_FOUND, f"{wanted} is none of the running servers", servers=servers)
    return wanted
