"""The child that answers what if: it keeps the newest few recordings with their graphs, as a slider asks again.

`python -m taxbreak_vllm.service.processes.trace_replayer BASELINES KEPT_BYTES MOST_BYTES`: a `Question` a line in, a
`Reply` a line out. Recordings are kept while the process holds no more than KEPT_BYTES; with more even without them it
ends after its answer, for its successor begins with none. It may never hold more than MOST_BYTES of data.
"""

import os
import resource
import sys
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.machine.parent import die_with_parent
from taxbreak_vllm.model.errors import SettingsError, TaxbreakError
from taxbreak_vllm.model.replays import Question, Reply
from taxbreak_vllm.model.whatif import WhatIf
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.whatif.asked import Asked, asked
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.predict import refuse

_NICENESS = 10


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A recording that is open, what changes to it share, and how old its baselines are."""

    recording: Recording
    basis: Basis
    baselines_ns: tuple[int, ...]
    close: ExitStack


class Replayer:
    """Recordings by their capture, the one asked for last at the end."""

    def __init__(self, baselines: Path, kept_bytes: int) -> None:
        self._baselines = baselines
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._is_full = False  # what is freed now is not given back

    def reply(self, question: Question) -> Reply:
        """Answer a question."""
        try:
            change = asked(**question.change)
            told = [self._told(path, change, is_drawn=question.timeline) for path in question.paths]
        except TaxbreakError as error:
            return Reply(no_change=str(error)) if isinstance(error, SettingsError) else Reply(unread=str(error))
        except MemoryError:
            self._is_full = True
            return Reply(unread="it is too large to be replayed here: taxbreak whatif")
        return Reply(answers=[msgspec.Raw(each) for each in told])

    def trim(self) -> bool:
        """Drop the oldest recordings until few bytes are held, and tell whether this process can go on."""
        while _held_bytes() > self._kept_bytes and self._kept:
            self._kept.popitem(last=False)[1].close.close()
        return not self._is_full and _held_bytes() <= self._kept_bytes

    def _told(self, path: str, change: Asked, *, is_drawn: bool) -> bytes:
        kept = self._find(path)
        answer = _answer(kept, change, is_drawn=is_drawn)
        if answer.refused is not None and kept.baselines_ns != _changed_ns(self._baselines):
            self._kept.pop(path).close.close()  # what was missing may be measured by now
            kept = self._find(path)
            answer = _answer(kept, change, is_drawn=is_drawn)
        info = kept.recording.info
        assert info is not None
        whose = {"step_id": info.step_id, "server_id": info.server.server_id, "phase": info.phase}
        return msgspec.json.encode(whose | answer.to_builtins())

    def _find(self, path: str) -> _Kept:
        if path not in self._kept:
            with ExitStack() as stack:
                changed_ns = _changed_ns(self._baselines)
                store = stack.enter_context(Baselines(self._baselines)) if self._baselines.is_file() else None
                recording = stack.enter_context(Recording.open(path, Terms(baselines=store)))
                self._kept[path] = _Kept(recording, Basis(recording), changed_ns, stack.pop_all())
        self._kept.move_to_end(path)
        return self._kept[path]


def main(arguments: list[str]) -> int:
    """Answer until standard input ends."""
    die_with_parent()
    baselines, kept_bytes, most_bytes = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    replayer = Replayer(baselines, kept_bytes)
    decoder = msgspec.json.Decoder(Question)
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(replayer.reply(decoder.decode(line))) + b"\n")
        sys.stdout.buffer.flush()
        if not replayer.trim():
            break
    return 0


def _answer(kept: _Kept, change: Asked, *, is_drawn: bool) -> WhatIf:
    """Say what a capture says of a change; what it has nothing to say of is refused, too."""
    try:
        return change.of(kept.recording, basis=kept.basis, is_drawn=is_drawn)
    except TaxbreakError as error:
        return refuse(kept.recording, change.named, str(error))


def _changed_ns(baselines: Path) -> tuple[int, ...]:
    files = (baselines, baselines.with_name(f"{baselines.name}-wal"))
    return tuple(file.stat().st_mtime_ns for file in files if file.is_file())


def _held_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
