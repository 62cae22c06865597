"""Which steps to record: of each kind one in so many, and those somebody asks for.

Every rank of a server counts the same steps and draws from the same seed, so all pick alike without a word between
them. A rank that has slowed down, to keep its overhead in budget, picks some of the steps that the others pick.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.serving.sampling.kinds import NEVER, StepKind
from taxbreak_vllm.serving.sampling.picks import Picks

_HORIZON = 64  # a kind's share is taken over about so many intervals


class Draws(Protocol):
    """Steps drawn for one seed and rate, as `Picks` draws them."""

    def next(self, first: int, level: int = 0) -> int: ...


class CaptureProgress:
    """How far one request for steps has come; `refusal` says why its latest step was not recorded.

    That and `num_started` belong to the step's thread, the rest to the storing one.
    """

    __slots__ = ("num_lost", "num_recorded", "num_started", "num_steps", "refusal", "request")

    def __init__(self, request: CaptureRequest, *, max_steps: int) -> None:
        self.request = request
        self.num_steps = min(request.steps, max_steps)
        self.num_started = 0
        self.num_recorded = 0
        self.num_lost = 0
        self.refusal: str | None = None

    @property
    def has_room(self) -> bool:
        """Whether more steps are asked for than were begun."""
        return self.num_started - self.num_lost < self.num_steps

    def asks_for(self, phase: Phase) -> bool:
        """Tell whether steps of this phase are asked for; an empty step only by name."""
        return phase is self.request.phase if self.request.phase is not None else phase is not Phase.IDLE


class Sample(NamedTuple):
    """The decision to record a step; `progress` is that of the request it is recorded for."""

    progress: CaptureProgress | None = None

    @property
    def stacks(self) -> bool:
        """Whether Python stacks are recorded too."""
        return self.progress is not None and self.progress.request.stacks

    @property
    def capture_id(self) -> str | None:
        """The request's id."""
        return None if self.progress is None else self.progress.request.capture_id

    def suits(self, phase: Phase) -> bool:
        """Tell whether a step of this phase is what is to be recorded."""
        return phase is not Phase.IDLE if self.progress is None else self.progress.asks_for(phase)

    def take(self, num_steps: int) -> None:
        """Count a step as begun for the request (1), or as not recorded after all (-1)."""
        if self.progress is not None:
            self.progress.num_started += num_steps


_PERIODIC = Sample()


class _Rule(NamedTuple):
    """What the picks follow from; replaced as a whole, and told from an earlier one by identity."""

    sample_every: int
    level: int = 0
    is_on: bool = True
    standing: CaptureProgress | None = None


class Sampler:
    """Picks steps to record; `plan` says from when on `decide` must be asked, so that other steps cost nothing.

    `kinds` are those of the worker. One that `looks_ahead` decides on the step before the one to be recorded, of which
    nothing is known yet. The thread of the steps decides, any other may set the rule or bring a request.
    """

    def __init__(
        self,
        seed: str,
        kinds: Iterable[StepKind],
        *,
        sample_every: int,
        max_steps: int,
        is_on: bool = True,
        looks_ahead: bool = False,
        draw: Callable[[str, int], Draws] = Picks,
    ) -> None:
        self._seed = seed
        self._draw = draw
        self._max_steps = max_steps
        self._kinds = kinds
        self._looks_ahead = looks_ahead
        self._rule = _Rule(sample_every, is_on=is_on)
        self._planned: _Rule | None = None
        self.progress: CaptureProgress | None = None

    @property
    def sample_every(self) -> int:
        return self._rule.sample_every

    @property
    def is_on(self) -> bool:
        """Whether any step may be recorded."""
        return self._rule.is_on

    @property
    def level(self) -> int:
        """How often the rate was halved."""
        return self._rule.level

    @property
    def slowdown(self) -> int:
        """How many times fewer steps are picked than asked for."""
        return 1 << self._rule.level

    def set(self, *, sample_every: int | None = None, level: int | None = None, is_on: bool | None = None) -> None:
        """Change the rule; None leaves a part of it as it is."""
        rule = self._rule
        self._replace(
            rule._replace(
                sample_every=rule.sample_every if sample_every is None else sample_every,
                level=rule.level if level is None else level,
                is_on=rule.is_on if is_on is None else is_on,
            )
        )

    def follow(self, request: CaptureRequest | None, *, now_unix_ns: int) -> None:
        """Take up the standing request, or none.

        A request is followed once: what was recorded for it stays known after it expired or was taken back.
        """
        if request is None or 0 < request.expires_unix_ns <= now_unix_ns:
            standing = None
        elif self.progress is not None and self.progress.request.capture_id == request.capture_id:
            standing = self.progress
        else:
            standing = self.progress = CaptureProgress(request, max_steps=self._max_steps)
        if standing is not self._rule.standing:
            self._replace(self._rule._replace(standing=standing))

    def decide(self, kind: StepKind) -> Sample | None:
        """Say how to record a step that has begun and was counted, None for not at all; for steps that are `due`."""
        if kind.pick < kind.num_steps:
            self._plan(fresh=kind)
        is_picked = kind.pick == kind.num_steps
        if is_picked or self._planned is not self._rule:
            self._plan()
        if not self._rule.is_on:
            return None
        standing = self._rule.standing
        if standing is not None and standing.has_room and (self._looks_ahead or standing.asks_for(kind.phase)):
            return Sample(standing)
        return _PERIODIC if is_picked else None

    def _replace(self, rule: _Rule) -> None:
        self._rule = rule
        for kind in self._kinds:
            kind.due = 0

    def _plan(self, fresh: StepKind | None = None) -> None:
        """Find the next pick of every kind; that of a `fresh` one may be the step it is at."""
        self._planned = None
        while self._planned is not self._rule:  # another thread may replace it meanwhile
            rule = self._rule
            total_weight = self._weigh(_HORIZON * rule.sample_every)
            for kind in self._kinds:
                first = kind.num_steps if kind is fresh else kind.num_steps + 1
                kind.pick = self._next_pick(kind, rule, first, total_weight)
                kind.due = NEVER if not rule.is_on else 0 if rule.standing is not None else kind.pick
            self._planned = rule

    def _weigh(self, horizon: int) -> int:
        """Bring the kinds' weights up to date, steps of long ago counting less and less; return their sum."""
        total_weight = 0
        for kind in self._kinds:
            if kind.phase is Phase.IDLE:
                continue  # an engine that waits for its siblings would make all it does besides look rare
            kind.weight += kind.num_steps - kind.num_weighed
            kind.num_weighed = kind.num_steps
            total_weight += kind.weight
        if total_weight > horizon:
            for kind in self._kinds:
                kind.weight //= 2
        return total_weight

    def _next_pick(self, kind: StepKind, rule: _Rule, first: int, total_weight: int) -> int:
        """Return the first pick from the kind's step number `first` on, counted from 1.

        Of a kind that makes up the share s of the steps one in N·√s of its own is picked, so that rare ones are seen;
        √s is rounded up to a power of a half.
        """
        if kind.phase is Phase.IDLE:
            return NEVER
        rarity = ((total_weight // max(1, kind.weight)).bit_length() - 1) // 2
        picks = self._draw(f"{self._seed}/{kind.name}", rule.sample_every)
        return picks.next(first - 1, rule.level - rarity) + 1
