"""An engine's traffic on its way into the spool, once a second; a fault ends it and is said once."""

import time
from itertools import count
from typing import Any

from taxbreak_vllm.iterations.spans import Int64
from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.engine.hooks import LoopHooks
from taxbreak_vllm.serving.engine.setup import INSTANTS, hash_block_size, setup_of
from taxbreak_vllm.serving.engine.traffic import Lines
from taxbreak_vllm.serving.steps import GraphModes
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.traffic.log import Log
from taxbreak_vllm.traffic.rows import Row, stamped

_MAX_HELD = 65_536  # lines, until a worker has said which server it is
_TOUCH_EVERY = 60


class KeptTraffic:
    """Appends what the hooks of one engine noted to its files."""

    def __init__(
        self,
        hooks: LoopHooks,
        engine: Any,  # noqa: ANN401 - an EngineCoreProc
        number: str,
        spool: Spool,
        settings: Settings,
    ) -> None:
        self._hooks = hooks
        self._engine = engine
        self._number = number
        self._spool = spool
        self._settings = settings
        self._lines: Lines | None = None
        self._log: Log | None = None
        self._held: list[Row] = []
        self._fault: str | None = None
        self._turns = count()

    @property
    def off_reason(self) -> str | None:
        """Why nothing is kept; None where it is."""
        if not self._settings.traffic_max_bytes:
            return "setting"
        if self._fault is not None:
            return self._fault
        if self._hooks.traffic is None:
            return "scheduler"
        return "hook" if self._hooks.traffic.fault else None

    def add(self, turns: Int64) -> None:
        """Keep what was noted since the last time, and the stamps of these turns."""
        if self.off_reason is not None:
            self._lines = None  # which holds requests of vLLM's
            return
        try:
            self._add(turns)
        except (OSError, SpoolError) as error:
            self._end("disk", error)
        except Exception as error:
            self._end("lines", error)

    def _add(self, turns: Int64) -> None:
        self._lines = self._lines or self._begin()
        self._held += self._lines.take()
        self._held += stamped(turns, INSTANTS)
        if not self._hooks.server_id:
            if len(self._held) > _MAX_HELD:
                raise OverflowError("no worker says which server this is")
            return
        if self._held:
            self._log = self._log or self._open()
            self._log.append(self._held)
            self._held = []
        elif self._log is not None and not next(self._turns) % _TOUCH_EVERY:
            self._log.touch()

    def _begin(self) -> Lines:
        assert self._hooks.traffic is not None
        return Lines(
            self._hooks.traffic,
            hash_block_size=hash_block_size(self._engine.scheduler),
            keeps_hashes=self._settings.traffic_hashes,
            graph_modes=GraphModes.from_config(self._engine.vllm_config.compilation_config),
        )

    def _open(self) -> Log:
        setup = setup_of(
            self._engine,
            self._hooks.server_id,
            self._number,
            has_hashes=self._settings.traffic_hashes,
            unix_offset_ns=time.time_ns() - time.monotonic_ns(),
        )
        folder = self._spool.make_traffic_dir(self._hooks.server_id)
        return Log(folder, setup, max_bytes=self._settings.traffic_max_bytes)

    def _end(self, reason: str, error: Exception) -> None:
        self._fault = reason
        self._lines, self._held = None, []
        if self._hooks.traffic is not None:
            self._hooks.traffic.stop(reason)
        logger.warning("taxbreak: an engine's traffic is no longer kept: %r", error)
