"""The stamps of an API server's requests on their way into the spool; a fault ends that and is said once."""

import time

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.stages.account import Int64
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.log import Log
from taxbreak_vllm.traffic.rows import Setup, stamped

_NO_INSTANTS = {
    *(Column.STATUS, Column.IS_STREAMED, Column.IS_FOLLOWED, Column.ENGINE, Column.NUMBER),
    *(Column.NUM_PROMPT_TOKENS, Column.NUM_OUTPUT_TOKENS),
    *(Column.WAIT_KV, Column.WAIT_ENCODER, Column.WAIT_GRAMMAR, Column.WAIT_REMOTE_KV),
}
INSTANTS = tuple(int(column) for column in Column if column not in _NO_INSTANTS)


class KeptRequests:
    """Appends the rows of one API server's requests to its files."""

    def __init__(self, server_id: str, api: str, spool: Spool, settings: Settings) -> None:
        self._server_id = server_id
        self._api = api
        self._spool = spool
        self._max_bytes = settings.traffic_max_bytes
        self._log: Log | None = None
        self.off_reason: str | None = None if self._max_bytes else "setting"

    def add(self, rows: Int64) -> None:
        """Keep rows (requests, columns), less what came of a request's name."""
        if self.off_reason is not None or not len(rows):
            return
        try:
            rows = rows.copy()
            rows[:, Column.NUMBER] = 0
            self._log = self._log or self._open()
            self._log.append(stamped(rows, INSTANTS))
        except Exception as error:
            self.off_reason = "disk" if isinstance(error, (OSError, SpoolError)) else "lines"
            logger.warning("taxbreak: an API server's requests are no longer kept: %r", error)

    def _open(self) -> Log:
        setup = Setup(
            server_id=self._server_id,
            source=f"api-{self._api}",
            unix_offset_ns=time.time_ns() - time.monotonic_ns(),
            columns=tuple(column.name.lower() for column in Column),
            instants=INSTANTS,
        )
        return Log(self._spool.make_traffic_dir(self._server_id), setup, max_bytes=self._max_bytes)
