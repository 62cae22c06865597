"""How quick this machine is at Python just now: limits in ns are those of a quick one, and wider on a slower one."""

import time
from collections.abc import Callable

USUAL_NS = 130  # of `empty_hook_ns`, where the limits were set
_NUM_CALLS = 20_000


def empty_hook_ns() -> float:
    """Return the mean CPU time in ns of a call through a hook that does nothing, the loop around it included."""

    def call() -> None:
        return None

    def hook(*args: object, **kwargs: object) -> None:
        return call(*args, **kwargs)

    return mean_ns(hook, _NUM_CALLS)


def mean_ns(call: Callable[[], object], num_calls: int) -> float:
    """Return the mean CPU time of a call in ns."""
    begun_ns = time.thread_time_ns()
    for _ in range(num_calls):
        call()
    return (time.thread_time_ns() - begun_ns) / num_calls


def allowed_ns(limit_ns: int, hook_ns: float) -> float:
    """Return a limit on a machine whose empty hook takes so long."""
    return limit_ns * max(1.0, hook_ns / USUAL_NS)
