"""What routes have read of captures' traces: in a child, one at a time, for a bounded time, and kept for a while.

In: what is wanted of which capture. Out: bytes, or a `Problem`. Neither the event loop nor this process's memory sees a
trace; `processes.trace_reader` is the child.
"""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

import msgspec

from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.spool.spool import Spool

_LIMIT_S = 60.0
_MAX_KEPT_BYTES, _MAX_ANSWER_BYTES = 32_000_000, 1_000_000  # of all answers, and of one that is kept
_NO_CHANGE = 2  # what the child exits with for words that are no change


class _Replayed(msgspec.Struct):
    refused: str | None = None


class TraceReads:
    """Reads traces for routes; answers that are kept outlive their capture."""

    def __init__(self, spool: Spool, baselines: Path) -> None:
        self._spool = spool
        self._baselines = str(baselines)
        self._kept: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._kept_bytes = 0
        self._one_at_a_time = asyncio.Semaphore(1)

    async def read(self, what: str, step_id: str) -> bytes:
        """Return what is wanted of one step."""
        async with self._one_at_a_time:
            if (found := self._find(what, step_id)) is None:
                found = await self._run(what, [await self._path(step_id)])
                self._keep(found, what, step_id)
            return found

    async def replay(self, step_ids: Sequence[str], wish: bytes) -> list[bytes]:
        """Return what each step would be under a change, which is `wish` as the child takes it.

        A refusal is not kept: what was missing may be measured in the meantime.
        """
        async with self._one_at_a_time:
            told = {step_id: self._find("whatif", step_id, wish.decode()) for step_id in step_ids}
            missing = [step_id for step_id, found in told.items() if found is None]
            if missing:
                out = await self._run("whatif", [await self._path(step_id) for step_id in missing], wish)
                for step_id, found in zip(missing, msgspec.json.decode(out, type=list[msgspec.Raw]), strict=True):
                    told[step_id] = bytes(found)
                    if msgspec.json.decode(found, type=_Replayed).refused is None:
                        self._keep(bytes(found), "whatif", step_id, wish.decode())
            return [found for found in told.values() if found is not None]

    async def _path(self, step_id: str) -> str:
        capture = await asyncio.to_thread(self._spool.find, step_id)
        if capture is None:
            raise Problem(HTTPStatus.NOT_FOUND, "no such capture in the spool; the oldest are evicted")
        return str(capture.path)

    def _find(self, *key: str) -> bytes | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, found: bytes, *key: str) -> None:
        if len(found) > _MAX_ANSWER_BYTES:
            return
        self._kept[key] = found
        self._kept_bytes += len(found)
        while self._kept_bytes > _MAX_KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    async def _run(self, what: str, paths: Sequence[str], wish: bytes = b"") -> bytes:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taxbreak_vllm.service.processes.trace_reader", what, self._baselines, *paths),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            answer, said = await asyncio.wait_for(child.communicate(wish), _LIMIT_S)
        except TimeoutError:
            detail = f"its trace could not be read within {_LIMIT_S:.0f} s"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail) from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        if child.returncode == _NO_CHANGE and wish:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, reason)
        if child.returncode:
            raise Problem(HTTPStatus.NOT_FOUND, f"its trace cannot be read: {reason}")
        return answer
