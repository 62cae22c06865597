"""Which server the page shows: one of those that run or have steps in the window, and the one that its address names.

In: live states, and which servers have analyzed steps. Out: `Choice`s, as figures of two servers are never one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.spool.spool import Spool


@dataclass(frozen=True, slots=True)
class Running:
    """What runs now: workers, engines and API servers, of all servers or of one."""

    workers: Sequence[WorkerState]
    engines: Sequence[EngineState]
    frontends: Sequence[FrontendState]

    @classmethod
    def read(cls, spool: Spool, *, now_ns: int) -> Self:
        """Read the states that were written a moment ago."""
        return cls(
            live(spool.states(), now_ns=now_ns),
            live(spool.engine_states(), now_ns=now_ns),
            live(spool.frontend_states(), now_ns=now_ns),
        )

    def of(self, server_id: str) -> "Running":
        """Keep those of one server."""
        return Running(
            [state for state in self.workers if state.server.server_id == server_id],
            [state for state in self.engines if state.server_id == server_id],
            [state for state in self.frontends if state.server_id == server_id],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One start of a server; `at_ns` is when it started or, of one that no longer runs, its newest step."""

    model_name: str
    server_id: str
    is_live: bool = False
    at_ns: int = 0


def choices(running: Running, recorded: Mapping[tuple[str, str], int]) -> list[Choice]:
    """Name all servers there are, by model; `recorded` is when a step of each last started."""
    found = {server_id: (model_name, at_ns) for (model_name, server_id), at_ns in recorded.items()}
    started = [(w.server.server_id, w.server.model_name, w.started_unix_ns) for w in running.workers]
    started += [(e.server_id, e.model_name, e.started_unix_ns) for e in running.engines]
    started += [(f.server_id, f.model_name, f.started_unix_ns) for f in running.frontends]
    alive: dict[str, tuple[str, int]] = {}
    for server_id, model_name, at_ns in started:
        alive.setdefault(server_id, (model_name, at_ns))
    names = [
        Choice(model_name=model_name, server_id=server_id, is_live=server_id in alive, at_ns=at_ns)
        for server_id, (model_name, at_ns) in (found | alive).items()
    ]
    return sorted(names, key=lambda one: (one.model_name, one.server_id))


def choose(found: Sequence[Choice], *, model_name: str | None, server_id: str | None) -> Choice:
    """Return the one that is named, of several the one that runs and started last; one that is not there is empty."""
    fitting = [one for one in found if model_name in (None, one.model_name) and server_id in (None, one.server_id)]
    absent = Choice(model_name=model_name or "", server_id=server_id or "")
    return max(fitting, key=lambda one: (one.is_live, one.at_ns, one.server_id), default=absent)
