"""The host that a worker ran on when one of its steps was recorded: what may set it apart from like ones."""

from dataclasses import dataclass

from taxbreak_vllm.model.numbers import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The processors of a worker's host; None is what the kernel does not tell.

    `cpu` is their name, `governor` what sets their clock (of several, all), `num_cpus` how many there are and
    `num_allowed` how many of them the worker may use, `cpu_limit` its quota in processors (None: none). Of the periods
    of that quota it was stopped in `throttled_ratio`; of the time in which it wanted a processor its steps' thread
    waited `runqueue_wait_ratio` for one.
    """

    cpu: str | None = None
    governor: str | None = None
    num_cpus: Int64 | None = None
    num_allowed: Int64 | None = None
    cpu_limit: float | None = None
    throttled_ratio: float | None = None
    runqueue_wait_ratio: float | None = None
