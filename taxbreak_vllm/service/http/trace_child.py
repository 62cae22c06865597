"""A child process that answers questions line by line and keeps what it has worked out between them.

In: a question in one line. Out: its answer in one line, or `ChildLostError`. The child is started when first asked, is
replaced once it has ended or has been too slow, and ends with this process however that ends.
"""

import os
import selectors
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from taxbreak_vllm.model.errors import TaxbreakError

_CHUNK_BYTES = 2**16


class ChildLostError(TaxbreakError):
    """The child did not answer: it could not start, ended, or took too long."""


class TraceChild:
    """One child process at a time, asked by one thread at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._reap: Callable[[], object] = lambda: None
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The child's process id; None before it is first asked, and after it was lost."""
        return self._process.pid if self._process is not None else None

    def ask(self, question: bytes, *, limit_s: float) -> bytes:
        """Return the answer to a question, neither with the end of its line, within so many seconds.

        A child that ended since it last answered is replaced, and its successor asked in the time that is left. Raises
        ChildLostError.
        """
        deadline_s = time.monotonic() + limit_s
        with self._lock:
            has_answered = self._process is not None
            try:
                try:
                    return self._answer(question, deadline_s)
                except BrokenPipeError:
                    if not has_answered or self._is_closed:
                        raise
                    return self._answer(question, deadline_s)
            except BrokenPipeError:
                raise ChildLostError("the process that reads traces ended before it answered") from None
            except TimeoutError:
                raise ChildLostError(f"its trace could not be read within {limit_s:.0f} s") from None

    def close(self) -> None:
        """End the child, in the middle of a question too, for good."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()  # whoever waits for its answer goes on
        with self._lock:
            self._end()

    def _answer(self, question: bytes, deadline_s: float) -> bytes:
        """Raise BrokenPipeError where the child has ended, TimeoutError where it is late."""
        process, answer = self._process or self._start(), b""
        try:
            answer = _exchange(process, question + b"\n", deadline_s)
        finally:
            if not answer:  # what it says later answers no other question
                self._end()
        return answer.removesuffix(b"\n")

    def _start(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise ChildLostError("traces are read no more: the service ends")
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except OSError as error:
            raise ChildLostError(f"the process that reads traces did not start: {error}") from None
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._process, self._reap = process, weakref.finalize(self, _end, process)
        return process

    def _end(self) -> None:
        if self._process is not None:
            self._process = None
            self._reap()


def _exchange(process: subprocess.Popen[bytes], question: bytes, deadline_s: float) -> bytes:
    """Write a question and read a line; raises as `TraceChild._answer` does."""
    assert process.stdin is not None
    assert process.stdout is not None
    answer, pending = bytearray(), memoryview(question)
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        ready.register(process.stdin, selectors.EVENT_WRITE)
        while not answer.endswith(b"\n"):
            events = ready.select(max(deadline_s - time.monotonic(), 0))
            if not events:
                raise TimeoutError
            for key, _ in events:
                if key.fileobj is process.stdin:
                    pending = pending[os.write(key.fd, pending[:_CHUNK_BYTES]) :]
                    if not pending:
                        ready.unregister(process.stdin)
                elif chunk := os.read(key.fd, _CHUNK_BYTES):
                    answer += chunk
                else:
                    raise BrokenPipeError
    return bytes(answer)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
