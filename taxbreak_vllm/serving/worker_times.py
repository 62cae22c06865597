"""What travels between an engine and its worker, as attributes on what vLLM sends anyway: a step's number and times.

The number goes out on a `SchedulerOutput`; the worker's times of that step come back on its `ModelRunnerOutput`, never
on the one that all empty steps share. Both survive pickling. Times are `time.monotonic_ns` of the worker's machine.
"""

import weakref
from typing import Any

NUMBER = "taxbreak_number"
TIMES = "taxbreak_times"

Times = tuple[str, int, int, int, int, int]  # server id, number, execute_model begun, ended, sample_tokens begun, ended


def answer(output: Any, times: Times) -> None:  # noqa: ANN401 - what a worker returns
    """Put a step's times on its output, or on what its output will be; raises what vLLM's objects raise."""
    fetch = getattr(type(output), "get_output", None)
    if fetch is None:
        _put(output, times)
        return
    itself = weakref.ref(output)  # it holds memory of the device: nothing of ours may hold it

    def get_output(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
        fetched = fetch(itself(), *args, **kwargs)
        _put(fetched, times)
        return fetched

    output.get_output = get_output


def _put(output: Any, times: Times) -> None:  # noqa: ANN401 - a ModelRunnerOutput
    if getattr(output, "req_ids", None):
        setattr(output, TIMES, times)
