"""Some of the rows of every `top` in an answer, for whoever asks for fewer than there are, or for those that follow."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from fastapi import Query

from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.service.results.window import MAX_TOP, Window

_LIMIT = f"rows of each `top`, beside which stands then how many there are (`num_top`); {MAX_TOP} with an offset alone"
_OFFSET = "rows of each `top` to leave out, from the dearest on"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedStep(StepBreakdown):
    """A step, or a sum of steps; `num_top` stands in it where rows of `top` were chosen."""

    num_top: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedBreakdown(Breakdown):
    """A breakdown as the API has it."""

    steps: tuple[ListedStep, ...] = ()
    total: ListedStep = field(default_factory=ListedStep)


@dataclass(frozen=True, slots=True)
class TopPage:
    """Query parameters; without them answers have what they have by themselves."""

    top_limit: Annotated[int | None, Query(ge=0, le=1000, description=_LIMIT)] = None
    top_offset: Annotated[int | None, Query(ge=0, le=1_000_000, description=_OFFSET)] = None

    @property
    def rows(self) -> slice:
        """Which rows are wanted."""
        begin = self.top_offset or 0
        return slice(begin, begin + (MAX_TOP if self.top_limit is None else self.top_limit))

    def of_window(self, window: Window) -> dict[str, Any]:
        """Return a window that was read with these `rows`, for msgspec to encode."""
        found = window.to_builtins()
        if not self._is_asked:
            return found
        total = found["total"] | {"num_top": window.num_top}
        return found | {"total": total, "steps": [self._cut(msgspec.json.decode(step)) for step in found["steps"]]}

    def of_step(self, data: bytes) -> bytes:
        """Return the JSON of one step's breakdown."""
        if not self._is_asked:
            return data
        found = msgspec.json.decode(data)
        total, steps = found.get("total", {}), found.get("steps", [])
        return msgspec.json.encode(found | {"total": self._cut(total), "steps": [self._cut(step) for step in steps]})

    @property
    def _is_asked(self) -> bool:
        return (self.top_limit, self.top_offset) != (None, None)

    def _cut(self, step: dict[str, Any]) -> dict[str, Any]:
        rows = step.get("top", [])
        return step | {"top": rows[self.rows], "num_top": len(rows)}
