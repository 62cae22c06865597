"""What is lost inside vLLM and what is said about it: counted by reason, logged once."""

import logging
import threading

# A child of vLLM's own logger, so that its handlers and level apply.
logger = logging.getLogger("vllm.taxbreak")


class Drops:
    """Counts samples that were lost, by reason; the first of each reason is logged. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_by_reason: dict[str, int] = {}

    def add(self, reason: str, detail: object = "", *, count: int = 1) -> None:
        """Count lost samples."""
        with self._lock:
            is_first = reason not in self._num_by_reason
            self._num_by_reason[reason] = self._num_by_reason.get(reason, 0) + count
        if is_first:
            logger.warning("taxbreak: a sample was dropped (%s) %s; further ones are only counted", reason, detail)

    def counts(self) -> dict[str, int]:
        """Return the counts so far."""
        with self._lock:
            return dict(self._num_by_reason)
