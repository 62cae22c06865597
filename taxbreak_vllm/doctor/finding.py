"""What one check has found."""

from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """How bad it is: a warning may falsify figures or cost some, a failure stops measuring."""

    OK = "ok"
    WARNING = "warning"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, what was seen there, and what to do about it (empty: nothing)."""

    check: str
    grade: Grade
    seen: str
    remedy: str = ""


def ok(check: str, seen: str) -> Finding:
    """Find nothing wrong; what is absent and need not be there is said as absent."""
    return Finding(check=check, grade=Grade.OK, seen=seen)


def warning(check: str, seen: str, remedy: str) -> Finding:
    """Find what may falsify figures."""
    return Finding(check=check, grade=Grade.WARNING, seen=seen, remedy=remedy)


def fail(check: str, seen: str, remedy: str) -> Finding:
    """Find what stops measuring."""
    return Finding(check=check, grade=Grade.FAIL, seen=seen, remedy=remedy)
