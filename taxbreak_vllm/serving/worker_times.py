"""What travels between an engine and its worker, as attributes on what vLLM sends anyway: a step's number and times.

The number goes out on a `SchedulerOutput`; the worker's times of that step come back on its `ModelRunnerOutput`, never
on the one that all empty steps share. Both survive pickling. Times are `time.monotonic_ns` of the worker's machine.
"""

from collections.abc import Callable
from typing import Any

from taxbreak_vllm.serving.drops import logger

NUMBER = "taxbreak_number"
TIMES = "taxbreak_times"

Around = Callable[[Callable[[], Any]], Any]
Times = tuple[str, int, int, int, int, int]  # server id, number, execute_model begun, ended, sample_tokens begun, ended


def answer(output: Any, times: Times) -> None:  # noqa: ANN401 - what a worker returns
    """Put a step's times on its output, or on what its output will be; raises what vLLM's objects raise."""
    if getattr(output, "get_output", None) is None:
        _put(output, times)
        return

    def bring(fetch: Callable[[], Any]) -> Any:  # noqa: ANN401 - a ModelRunnerOutput
        fetched = fetch()
        try:
            _put(fetched, times)
        except Exception as error:
            logger.debug("taxbreak: the times of a step do not go back to its engine: %r", error)
        return fetched

    when_fetched(output, bring)


def when_fetched(output: Any, around: Around) -> None:  # noqa: ANN401 - an AsyncModelRunnerOutput
    """Have `around` call vLLM's own `get_output` once that is asked for; it raises nothing but what that raises."""
    output.get_output = _Fetch(output, around)


class _Fetch:
    """Stands for an output's `get_output`, once: the two hold each other, and an output holds memory of the device."""

    def __init__(self, output: Any, around: Around) -> None:  # noqa: ANN401 - an AsyncModelRunnerOutput
        self._output = output
        self._fetch = output.get_output
        self._around = around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
        try:
            return self._around(lambda: self._fetch(*args, **kwargs))
        finally:
            if vars(self._output).get("get_output") is self:
                del self._output.get_output


def _put(output: Any, times: Times) -> None:  # noqa: ANN401 - a ModelRunnerOutput
    if getattr(output, "req_ids", None):
        setattr(output, TIMES, times)
