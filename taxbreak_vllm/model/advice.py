"""What to change, what it can win at most, and what would refute it."""

from collections.abc import Mapping
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
    """What a bound is of, on average: a step, the time from one step to the next, a token, or a request."""

    STEP = "step"
    ITERATION = "iteration"
    TOKEN = "token"
    REQUEST = "request"


class Verdict(StrEnum):
    """What the evidence allows to say; conditional: it hangs on how long the step takes without a profiler."""

    ACT = "act"
    CONDITIONAL = "conditional"
    NO_ACTION = "no action"
    WITHHELD = "withheld"


@dataclass(frozen=True, slots=True, kw_only=True)
class Win:
    """What a change is predicted to win, of what the advice is `per`: `win_ns`, between `low_ns` and `high_ns`.

    The ratios are those of the bound beside it, so of several phases weighted by their shares of the serving time. None
    of it is above the bound; less than 0 is lost. `num_steps` recordings of steps were replayed, under `change`.
    """

    win_ns: int
    low_ns: int
    high_ns: int
    win_ratio: float
    low_ratio: float
    high_ratio: float
    change: str
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseAdvice:
    """What a change can win in the steps of one phase, and what that stands on.

    `at_most_ns` and `at_most_ratio` are of an average plain step of the phase (or its token, as the advice says).
    `interval` holds the share with a probability of 95 %, None where fewer than `MIN_STEPS` were recorded.
    `serving_ratio` is the phase's share of the serving time, None where nothing is known of that.
    `if_plain_above_ns` is the plain step from which on this weighs, in conditional advice. `predicted` is what it is
    predicted to win, None where `unpredicted` says why nothing is.
    """

    phase: Phase | None
    finding: str
    num_steps: int
    at_most_ns: int
    at_most_ratio: float
    interval: tuple[float, float] | None = None
    serving_ratio: float | None = None
    if_plain_above_ns: int | None = None
    predicted: Win | None = None
    unpredicted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change. `at_most_ns` bounds what it can win from above, of what `per` says, `at_most_ratio` as a share of it.

    The bound is the time the device waited for that component (of device work: the time it took; of a request: what it
    spent there), carried over to the plain step, so no change to the component can win more; most win less. Of several
    `phases` it is the sum over the serving time, those without a finding counted as 0: `at_most_ns` is then of an
    average step, and `phase` is None. `num_steps` were recorded of these phases; `interval` as in `PhaseAdvice`.
    `tokens_per_s_at_most` is the rate of output tokens if all of the bound were won, `at_most_ns_per_token` the time
    that would be won for each of them. `if_plain_above_ns`, in conditional advice alone, is the plain step from which
    on the change is worth trying. `predicted` is what it is predicted to win of the same, None where `unpredicted` says
    why nothing is; of several phases those that tell nothing count as 0, and as their bound at the high end.
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
    phases: tuple[PhaseAdvice, ...] = ()
    num_steps: int | None = None
    interval: tuple[float, float] | None = None
    tokens_per_s_at_most: float | None = None
    at_most_ns_per_token: int | None = None
    if_plain_above_ns: int | None = None
    predicted: Win | None = None
    unpredicted: str | None = None

    @property
    def place(self) -> tuple[bool, float]:
        """Where it stands among others: those on enough steps first, then by the win predicted, else by the bound."""
        is_thin = self.num_steps is not None and self.interval is None
        return is_thin, -(self.at_most_ratio if self.predicted is None else self.predicted.win_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPhase:
    """One phase of the serving time: its share, how many steps it is of, and how long a plain one takes on average.

    `host_ratio` bounds the share of a plain step that the device waits for the host, None where none was recorded.
    """

    phase: Phase | None
    serving_ratio: float
    num_steps: int
    plain_ns: int
    num_recorded: int = 0
    host_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What serving time goes to, while there is work: the phases, largest first.

    `is_timed`: from the durations of all plain steps; else from the recorded steps, which are few and chosen.
    `tokens_per_s` is the rate of output tokens of one engine, `host_ns_per_token` what the device waits for the host
    for each of them, at most; tokens of a step are those of the recorded ones of its phase.
    """

    phases: tuple[ServedPhase, ...]
    is_timed: bool
    step_ns: int
    tokens_per_s: float | None = None
    host_ns_per_token: int | None = None


class Held(StrEnum):
    """What came of a change."""

    HELD = "held"
    DID_NOT_HOLD = "did not hold"
    NOT_ENOUGH_YET = "not enough yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a restart with other settings: plain time after it over plain time before, less than 1 is a win.

    Of an iteration or a request it is the time of the part that the advice is about, a mean without an interval.
    `rules` name the advice that asked for one of the settings changed, none where nothing did. `change` is what was
    measured, `interval` holds it with a probability of 95 % (None: too few steps), `promised_ratio` was the bound.
    `settings` are those that differ: before and after.
    """

    held: Held
    rules: tuple[str, ...]
    settings: Mapping[str, tuple[str, str]]
    per: Per
    phase: Phase | None
    change: float | None
    interval: tuple[float, float] | None
    promised_ratio: float | None
    num_before: int
    num_after: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceReport:
    """What to change, what wins most first (`Advice.place`); `reasons` say why nothing else is advised, or nothing.

    `conditional` is what to change if the plain step is long enough, where nobody timed one; `settled_by` is the
    measurement that would tell. `outcomes` say what came of the changes made before.
    """

    verdict: Verdict
    advice: tuple[Advice, ...] = ()
    reasons: tuple[str, ...] = ()
    conditional: tuple[Advice, ...] = ()
    settled_by: str | None = None
    serving: Serving | None = None
    outcomes: tuple[Outcome, ...] = ()

    def to_builtins(self) -> dict[str, Any]:
        """Return the report as dicts, lists and numbers."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        return tree
