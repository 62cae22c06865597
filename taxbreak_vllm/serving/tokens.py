"""The tokens that a recorded step sampled: its output in, their number out once vLLM itself has them.

With async scheduling an output comes back before its tokens do (vllm/v1/outputs.py, AsyncModelRunnerOutput). What it
holds until then is a buffer that the device still writes, of a type that differs between runners: it is not looked at.
vLLM calls `get_output` when it wants the tokens, on whatever thread, and they are counted in what that returns.
"""

from collections.abc import Callable, Collection
from threading import Event
from typing import Any

from taxbreak_vllm.serving.drops import logger


class SampledTokens:
    """How many tokens a step sampled, and how many drafts were accepted; None for what is not known, or not yet."""

    def __init__(self, *, drafted: Collection[str] = ()) -> None:
        self.counts: tuple[int | None, int | None] = (None, None if drafted else 0)
        self.is_async = False
        self._drafted = drafted
        self._is_settled = Event()
        self._output: Any = None

    @classmethod
    def none(cls, output: object = None) -> "SampledTokens":
        """Return those of a step that samples nothing, whatever its output is."""
        tokens = cls()
        tokens.counts = (0, 0)
        tokens.is_async = hasattr(output, "get_output")
        tokens._is_settled.set()
        return tokens

    def follow(self, output: Any) -> None:  # noqa: ANN401 - what a runner of vLLM returns
        """Count what a step's output holds, or will hold; waits for nothing, and a fault costs the count alone."""
        try:
            fetch = getattr(output, "get_output", None)
            self.is_async = fetch is not None
            if fetch is not None:
                self._output = output
                output.get_output = lambda *args, **kwargs: self._fetch(fetch, *args, **kwargs)
                return
        except Exception as error:
            self._output = None
            logger.debug("taxbreak: the tokens of a step are not counted: %r", error)
        else:
            self._count(output)
        self._is_settled.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the count, on a thread that serves nobody; False where vLLM has not asked for the tokens by then."""
        is_settled = self._is_settled.wait(timeout_s)
        self._let_go()
        return is_settled

    def _fetch(self, fetch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM calls it
        try:
            fetched = fetch(*args, **kwargs)
            self._count(fetched)
            return fetched
        finally:
            self._let_go()
            self._is_settled.set()

    def _count(self, output: Any) -> None:  # noqa: ANN401 - a ModelRunnerOutput
        try:
            sampled = output.sampled_token_ids
            if not isinstance(sampled, list):
                raise TypeError(f"tokens in a {type(sampled).__name__}")
            output_tokens = sum(map(len, sampled))
            self.counts = (output_tokens, self.counts[1])
            index_by_id = output.req_id_to_index
            rows = [sampled[index_by_id[req_id]] for req_id in self._drafted if req_id in index_by_id]
            if rows:
                # a request's last token is the model's own, those before it are drafts that it would have said too
                self.counts = (output_tokens, sum(max(0, len(row) - 1) for row in rows))
        except Exception as error:
            logger.debug("taxbreak: the tokens of a step are not counted: %r", error)

    def _let_go(self) -> None:
        """Take our call off the output again: the two hold each other, and the output holds memory of the device."""
        output, self._output = self._output, None
        try:
            if output is not None:
                del output.get_output
        except Exception as error:
            logger.debug("taxbreak: an output keeps our call: %r", error)
