"""What a run on a GPU host has found so far: one JSON file, rewritten after every case, so that a second run goes on.

A stage asks for its cases one by one; a case that the file holds already is not measured again, and once the time is
over the rest is left for the next run.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any


class Book:
    """Results by stage and case; `seconds` from now on no new case is begun."""

    def __init__(self, path: Path, *, seconds: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._now_s = now_s
        self._until_s = now_s() + seconds
        self.stages: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        self.left: list[str] = []

    def case(self, stage: str, name: str, measure: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever was measured
        """Return a case's result, measured now or before; None where it failed or was left for later."""
        known = self.stages.setdefault(stage, {})
        if name not in known:
            if self.is_over():
                self.left.append(f"{stage}/{name}")
                return None
            begun_s = self._now_s()
            try:
                found = measure()
            except Exception as error:  # one case, named in the file; the others go on
                text = f"{type(error).__name__}: {error}"
                found = {"error": text if len(text) < 1200 else f"{text[:200]} … {text[-1000:]}"}
            print(f"  {stage}/{name}: {self._now_s() - begun_s:.1f} s", *_errors(found), flush=True)
            known[name] = found
            self.write()
        return None if _errors(known[name]) else known[name]

    def is_over(self) -> bool:
        """Whether no new case may begin."""
        return self._now_s() >= self._until_s

    def note(self, stage: str, name: str, value: object) -> None:
        """Write down something that took no measuring."""
        self.stages.setdefault(stage, {})[name] = value
        self.write()

    def write(self) -> None:
        """Replace the file by what is known."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps(self.stages, indent=1, sort_keys=True) + "\n")
        temporary.rename(self.path)

    def forget_failures(self) -> None:
        """Have the cases that failed measured again."""
        for cases in self.stages.values():
            for name in [name for name, found in cases.items() if _errors(found)]:
                del cases[name]


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as aligned columns, those of the first row; times (`*_ns`) as µs, what is missing as –."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    heads = [name.removesuffix("_ns") + (" µs" if name.endswith("_ns") else "") for name in names]
    lines = [heads, *([_cell(name, row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(names))]
    print(f"\n{title}")
    for line in lines:
        print("  " + "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    print(flush=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and from the smallest to the largest as a share of it."""
    middle = median(values)
    return {
        "median": middle,
        "min": min(values),
        "max": max(values),
        "range_ratio": (max(values) - min(values)) / middle if middle else 0.0,
    }


def rise(by_wait: Mapping[int, Sequence[float]], wait: int) -> float:
    """How much more than without a wait, in the median."""
    return median(by_wait[wait]) - median(by_wait[min(by_wait)])


def is_recovered(rise_ns: float, injected_ns: float) -> bool:
    """Within 10 % or 1 µs of what was put there."""
    return abs(rise_ns - injected_ns) <= max(0.1 * injected_ns, 1000)


def knee(points: Sequence[tuple[int, float]], factor: float = 2.0) -> int | None:
    """The first batch at which a figure has left its plateau, `factor` times its least so far; None: never."""
    least = float("inf")
    for batch, value in points:
        if value > factor * least:
            return batch
        least = min(least, value)
    return None


def _cell(name: str, value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_ns") and isinstance(value, int | float):
        return f"{value / 1000:,.2f}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return str(value)


def _errors(found: object) -> list[str]:
    return [str(found["error"])] if isinstance(found, dict) and "error" in found else []
