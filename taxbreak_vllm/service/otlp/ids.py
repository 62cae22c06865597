"""The ids of traces and spans: made of what is told, so that who tells it twice, after a restart, tells the same."""

from hashlib import blake2b


def step_ids(step_id: str) -> tuple[int, int]:
    """Return the ids of a recorded step's trace and span."""
    return trace_id("step", step_id), span_id("step", step_id)


def trace_id(*parts: object) -> int:
    """Return the 128 bits that name a trace."""
    return _bits(16, "trace", *parts)


def span_id(*parts: object) -> int:
    """Return the 64 bits that name a span."""
    return _bits(8, "span", *parts)


def _bits(num_bytes: int, *parts: object) -> int:
    text = "\0".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=num_bytes).digest()) or 1  # 0 is no id
