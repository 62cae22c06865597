"""A worker extension of which any part can be made to fail on a live server: the file FAULTY_CONTROL names the part.

While the file holds `Class.method`, every call of that method raises; each change of the file opens the watch anew, as
a fault in a step ends it for good. `clock -7200` in the file sets the clock that the worker reads back by that much.
"""

import functools
import itertools
import os
import time
from pathlib import Path
from typing import Any, Self

from taxbreak_vllm.serving import outbox, recorder, recordings, tokens, worker
from taxbreak_vllm.serving.sampling import kinds, policy, sampler
from taxbreak_vllm.spool.spool import Spool

PARTS = {
    "StepKinds.of_step": (kinds.StepKinds, "of_step"),
    "StepKind.add": (kinds.StepKind, "add"),
    "StepKind.median": (kinds.StepKind, "median"),
    "StepKinds.histograms": (kinds.StepKinds, "histograms"),
    "Sampler.decide": (sampler.Sampler, "decide"),
    "Policy.allows": (policy.Policy, "allows"),
    "Policy.detail": (policy.Policy, "detail"),
    "Policy.settle": (policy.Policy, "settle"),
    "Policy.follow": (policy.Policy, "follow"),
    "classify": (recordings, "classify"),
    "SampledTokens.follow": (tokens.SampledTokens, "follow"),
    "TorchProfile.open": (recorder.TorchProfile, "__init__"),
    "TorchProfile.start": (recorder.TorchProfile, "start"),
    "TorchProfile.stop": (recorder.TorchProfile, "stop"),
    "TorchProfile.export": (recorder.TorchProfile, "export"),
    "Outbox.offer": (outbox.Outbox, "offer"),
    "Spool.put": (Spool, "put"),
    "Spool.put_state": (Spool, "put_state"),
    "Spool.read_request": (Spool, "read_request"),
}

# These fail once they have done their work: a profiler left on would be another fault than the one meant.
LATE = {"TorchProfile.stop"}

_server_id = worker.server_id
_CONTROL = Path(os.environ["FAULTY_CONTROL"])


def _fault() -> str:
    wanted = _CONTROL.read_text()
    return "" if wanted.startswith("clock ") else wanted


def _make_breakable(name: str) -> None:
    place, attribute = PARTS[name]
    call = getattr(place, attribute)

    @functools.wraps(call)
    def broken(*args: Any, **kwargs: Any) -> Any:
        if _fault() != name:
            return call(*args, **kwargs)
        if name in LATE:
            call(*args, **kwargs)
        raise RuntimeError(f"injected into {name}")

    setattr(place, attribute, broken)


def _unix_ns() -> int:
    kind, _, seconds = _CONTROL.read_text().partition(" ")
    return time.time_ns() + (int(seconds) * 10**9 if kind == "clock" else 0)


class Reopened:
    """Stands for the worker's watch, a new one after every change of the control file."""

    def __init__(self, its_worker: Any) -> None:
        self._numbers = itertools.count()
        self._open(its_worker)

    def _open(self, its_worker: Any) -> None:
        self._fault = _fault()
        number = next(self._numbers)  # each is a server of its own, as its steps are numbered from 1 again
        worker.server_id = lambda config: f"{_server_id(config)}-{number}"
        opened = worker.open_watch(its_worker)
        assert opened is not None
        opened._unix_ns = _unix_ns
        self._watch = opened

    def begin(self, its_worker: Any, scheduled: Any) -> None:
        if self._fault != _fault():
            self._watch.close()
            self._open(its_worker)
            self._watch.arm()
        self._watch.begin(its_worker, scheduled)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watch, name)


class FaultyExtension(worker.WorkerExtension):
    """The extension, with a watch that can be broken."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        built = object.__new__(cls)
        worker.install(built, open_watch=Reopened)
        return built


for _name in PARTS:
    _make_breakable(_name)
