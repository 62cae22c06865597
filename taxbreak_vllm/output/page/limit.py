"""The hardware limit as the page shows it: the bar of each phase, MFU and MBU, ceilings, why a figure is missing.

In: `PhaseLimit`s. Out: views, in which a part is (class of colour, words, ns). No figure is computed here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from taxbreak_vllm.model.limits import PhaseLimit
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.page.server import Part
from taxbreak_vllm.output.text.limit import BAR_WORDS, giga, tera
from taxbreak_vllm.output.words import UNKNOWN

_COLOURS = {
    "limit": "active",
    "above": "other_active",
    "delta_ft": "python",
    "delta_ct": "library",
    "delta_kt": "launch",
    "other": "runtime",
    "engine": "engine",
    "other_idle": "queue",
    "unknown": "no-work",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitView:
    """One phase: its bar, shown per step, and the rest in words."""

    name: str
    num_steps: int
    parts: tuple[Part, ...]
    mfu: float | None
    mbu: float | None
    bound: str
    limit_ns: int | None
    above_ns: int | None
    flops: str
    bytes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsView:
    """All phases, the ceilings that they are beside, and what is to be known of them."""

    phases: tuple[LimitView, ...] = ()
    ceilings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """Return the colours and words of all parts that are seen, in the order of the bar."""
        seen = {(css, words) for phase in self.phases for css, words, part_ns in phase.parts if part_ns}
        known = tuple((_COLOURS[part], words) for part, words in BAR_WORDS.items())
        return tuple(pair for pair in known if pair in seen)


def limits_view(phases: Mapping[Phase, PhaseLimit] | Mapping[Phase | None, PhaseLimit]) -> LimitsView:
    """Show the limit of each phase."""
    every = list(phases.values())
    return LimitsView(
        phases=tuple(_view(phase or "all steps", limit) for phase, limit in phases.items()),
        ceilings=_once(each.ceilings for each in every),
        notes=_once((*each.reasons, *each.notes) for each in every),
    )


def _view(name: str, limit: PhaseLimit) -> LimitView:
    return LimitView(
        name=name,
        num_steps=limit.num_steps,
        parts=tuple(
            (_COLOURS.get(part, "op"), BAR_WORDS.get(part, part), ns) for part, ns in limit.bar.parts_ns().items()
        ),
        mfu=limit.mfu,
        mbu=limit.mbu,
        bound=limit.bound or UNKNOWN,
        limit_ns=limit.bar.limit_ns if limit.num_bounded else None,
        above_ns=limit.bar.above_ns if limit.num_bounded else None,
        flops=UNKNOWN if limit.flops_per_s is None else tera(limit.flops_per_s),
        bytes=UNKNOWN if limit.bytes_per_s is None else giga(limit.bytes_per_s),
    )


def _once(lists: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words for each in lists for words in each))
