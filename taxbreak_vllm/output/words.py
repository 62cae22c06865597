"""Figures as people read them: the one place where durations, ratios and shares become words.

`page/static/words.js` says durations alike, in the browser.
"""

UNKNOWN = "–"


def duration(duration_ns: float | None, *, sign: str = "") -> str:
    """Say a duration to a tenth of a µs, from 1 ms on in ms, from 10 s on in s; `sign="+"` says also which way."""
    if duration_ns is None:
        return UNKNOWN
    size = abs(duration_ns)
    if size < 1_000_000:
        return f"{duration_ns / 1e3:{sign},.1f} µs"
    if size < 10_000_000_000:
        return f"{duration_ns / 1e6:{sign},.{1 if size >= 100_000_000 else 2}f} ms"
    return f"{duration_ns / 1e9:{sign},.1f} s"


def span(seconds: int) -> str:
    """Say a window in its largest whole unit."""
    unit, word = next(((u, w) for u, w in ((86400, "d"), (3600, "h"), (60, "min")) if seconds % u == 0), (1, "s"))
    return f"{seconds // unit} {word}"


def ratio(value: float | None) -> str:
    """Say a ratio of 0 to 1."""
    return UNKNOWN if value is None else f"{value:.3f}"


def percent(value: float | None, *, sign: str = "") -> str:
    """Say a share."""
    return UNKNOWN if value is None else f"{value:{sign}.1%}"


def times(value: float | None) -> str:
    """Say how many times as much."""
    return UNKNOWN if value is None else f"{value:.2f}×"


def one(noun: str) -> str:
    """Say one of a thing."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"
