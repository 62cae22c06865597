"""How much of a step's ops to record, so that stopping the recording does not hold up the step's thread for too long.

What a stop takes grows with the ops there were and with what is recorded of each: the latest of its kind in, the detail
of the next one out. A kind found too dear is tried again after so many picks, twice as many each time, so that one stop
that was slow by chance does not end it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from taxbreak_vllm.serving.sampling.kinds import StepKind

_PATIENCE = 16  # picks
_MAX_PATIENCE = 1024


class Detail(Enum):
    """What is recorded of each op: when it ran; the shapes of its inputs too; Python stacks too."""

    TIMES = auto()
    SHAPES = auto()
    STACKS = auto()


@dataclass(slots=True)
class _Stop:
    """The latest stop of one kind and detail; `step_ns` is for each recorded step, None for none yet."""

    step_ns: float | None = None
    num_refused: int = 0
    patience: int = _PATIENCE


class Stalls:
    """Predicts what the stop of a recording takes; `num_steps` are bracketed by most recordings."""

    def __init__(self, max_ns: float, *, num_steps: int) -> None:
        self._max_ns = max_ns
        self._num_steps = num_steps
        self._stops: dict[tuple[StepKind, Detail], _Stop] = {}

    def choose(
        self, kind: StepKind, details: Sequence[Detail], *, is_asked: bool = False, max_ns: float | None = None
    ) -> Detail | None:
        """Return the first of `details` that is quick enough, None for none; what is asked for is not tried anew."""
        max_ns = self._max_ns if max_ns is None else max_ns
        for detail in details:
            if self.predict_ns(kind, detail) <= max_ns:
                return detail
            if is_asked:
                continue
            stop = self._stops.setdefault((kind, detail), _Stop())
            stop.num_refused += 1
            if stop.num_refused > stop.patience:
                return detail
        return None

    def predict_ns(self, kind: StepKind, detail: Detail) -> float:
        """Return what stopping the next one takes: as its own latest, else the nearest kind's, 0 where none is known.

        Kinds run in other graph modes tell nothing of each other; of the rest the one with the nearest number of tokens
        counts, first of the same phase.
        """
        own = self._stops.get((kind, detail))
        if own is None or own.step_ns is None:
            known = [
                (other.phase is not kind.phase, abs(other.size - kind.size), stop.step_ns)
                for (other, its_detail), stop in self._stops.items()
                if its_detail is detail and other.graph_mode is kind.graph_mode and stop.step_ns is not None
            ]
            return self._num_steps * min(known)[2] if known else 0
        return self._num_steps * own.step_ns

    def learn(self, kind: StepKind, detail: Detail, stop_ns: int, num_steps: int) -> None:
        """Take in what stopping a recording of so many steps took."""
        stop = self._stops.setdefault((kind, detail), _Stop())
        stop.step_ns = stop_ns / num_steps
        stop.num_refused = 0
        is_dear = self._num_steps * stop.step_ns > self._max_ns
        stop.patience = min(2 * stop.patience, _MAX_PATIENCE) if is_dear else _PATIENCE
