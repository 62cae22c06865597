"""What routes have read of captures' traces: in a child, one at a time, for a bounded time, and kept for a while.

In: what is wanted of which capture. Out: bytes, or a `Problem`. Neither the event loop nor this process's memory sees a
trace: `processes.trace_reader` is a child for each, `processes.trace_replayer` one that stays for what if.
"""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from pathlib import Path

import msgspec

from taxbreak_vllm.model.replays import Question, Reply
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.trace_child import ChildLostError, TraceChild
from taxbreak_vllm.spool.spool import Spool

_LIMIT_S = 60.0
_MAX_KEPT_BYTES, _MAX_ANSWER_BYTES = 32_000_000, 1_000_000  # of all answers, and of one that is kept
_GRAPHS_BYTES, _MOST_BYTES = 300_000_000, 2_000_000_000  # of the child that stays: while it waits, and at any time


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
        module = "taxbreak_vllm.service.processes.trace_replayer"
        bounds = (str(_GRAPHS_BYTES), str(_MOST_BYTES))
        self.child = TraceChild((sys.executable, "-m", module, self._baselines, *bounds))
        self._asking = ThreadPoolExecutor(1, "taxbreak-traces")

    def close(self) -> None:
        """End the child that stays; the next change asked for starts another."""
        self.child.close()

    async def read(self, what: str, step_id: str) -> bytes:
        """Return what is wanted of one step."""
        async with self._one_at_a_time:
            if (found := self._find(what, step_id)) is None:
                found = await self._run(what, await self._path(step_id))
                self._keep(found, what, step_id)
            return found

    async def replay(
        self, step_ids: Sequence[str], change: Mapping[str, object], *, is_drawn: bool = False
    ) -> list[bytes]:
        """Return what each step would be under a change, which is in the words of `asked`, with its timeline if drawn.

        A refusal is not kept: what was missing may be measured in the meantime.
        """
        wish = msgspec.json.encode([change, is_drawn]).decode()
        async with self._one_at_a_time:
            told = {step_id: self._find("whatif", step_id, wish) for step_id in step_ids}
            missing = [step_id for step_id, found in told.items() if found is None]
            if missing:
                paths = [await self._path(step_id) for step_id in missing]
                question = Question(paths, dict(change), is_drawn)
                for step_id, answer in zip(missing, await self._ask(question), strict=True):
                    found = told[step_id] = bytes(answer)
                    if msgspec.json.decode(found, type=_Replayed).refused is None:
                        self._keep(found, "whatif", step_id, wish)
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

    async def _ask(self, question: Question) -> list[msgspec.Raw]:
        ask = partial(self.child.ask, msgspec.json.encode(question), limit_s=_LIMIT_S)
        try:
            out = await asyncio.get_running_loop().run_in_executor(self._asking, ask)
        except ChildLostError as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        reply = msgspec.json.decode(out, type=Reply)
        if reply.no_change is not None:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, reply.no_change)
        if reply.unread is not None:
            raise Problem(HTTPStatus.NOT_FOUND, f"its trace cannot be read: {reply.unread}")
        return reply.answers

    async def _run(self, what: str, path: str) -> bytes:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taxbreak_vllm.service.processes.trace_reader", what, self._baselines, path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            answer, said = await asyncio.wait_for(child.communicate(), _LIMIT_S)
        except TimeoutError:
            detail = f"its trace could not be read within {_LIMIT_S:.0f} s"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail) from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode:
            reason = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise Problem(HTTPStatus.NOT_FOUND, f"its trace cannot be read: {reason}")
        return answer
