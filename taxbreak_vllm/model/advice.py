"""What to change, what it can win at most, and what would refute it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from taxbreak_vllm.model.step import Phase


class Component(StrEnum):
    """The part of the system that a piece of advice is about."""

    FRAMEWORK = "framework"
    LIBRARY = "library"
    LAUNCH_PATH = "launch path"
    DEVICE_WORK = "device work"
    SYNCHRONIZATION = "synchronization"
    ENGINE_LOOP = "engine loop"
    IPC = "messages between processes"
    API_SERVER = "API server"
    MACHINE = "machine"


class Per(StrEnum):
    """What a bound is of, on average: a step, the time from one step to the next, or a request."""

    STEP = "step"
    ITERATION = "iteration"
    REQUEST = "request"


class Verdict(StrEnum):
    """What the evidence allows to say."""

    ACT = "act"
    NO_ACTION = "no action"
    WITHHELD = "withheld"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change. `at_most_ns` bounds what it can win in an average step from above, `at_most_ratio` as a share of it.

    The bound is the time the device waited for that component (of device work: the time it took; of a request: what it
    spent there), so no change to the component can win more; most win less. `per` says what it is a bound of.
    """

    rule: str
    component: Component
    phase: Phase | None
    finding: str
    change: str
    settings: tuple[str, ...]
    at_most_ns: int
    at_most_ratio: float
    refuted_by: str
    per: Per = Per.STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceReport:
    """What to change, the largest bound first; `reasons` say why nothing else is advised, or nothing at all."""

    verdict: Verdict
    advice: tuple[Advice, ...] = ()
    reasons: tuple[str, ...] = ()

    def to_builtins(self) -> dict[str, Any]:
        """Return the report as dicts, lists and numbers."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        return tree
