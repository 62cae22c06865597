"""How a command opens a trace: one too large for memory waits in the spool that the settings name, else in TMPDIR.

In a pod the spool is the one place with room: a container that fills its `/tmp` takes the pod with it, vLLM included.
Nothing here is loaded, and no setting read, for a trace that fits in memory.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from taxbreak_vllm.model.errors import BaselineError
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.large.bins import Room, TemporaryRoom

if TYPE_CHECKING:
    from taxbreak_vllm.baselines.store import Baselines


def opened(
    path: Path, terms: Terms, *, with_calls: bool = False, with_frames: bool = False
) -> AbstractContextManager[Recording]:
    """Open a trace or a capture on terms, as `Recording.open` does."""
    is_named = "TAXBREAK_SPOOL" in os.environ
    find_room = _spool_room if is_named else TemporaryRoom
    return Recording.open(path, terms, with_calls=with_calls, with_frames=with_frames, find_room=find_room)


def _spool_room() -> Room:
    from taxbreak_vllm.settings import load_settings
    from taxbreak_vllm.spool.spill import SpillRoom
    from taxbreak_vllm.spool.spool import Spool

    settings = load_settings()
    return SpillRoom(
        Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    )


@contextmanager
def store(path: Path | None) -> "Iterator[Baselines | None]":
    """Open a store that must be there already."""
    if path is None:
        yield None
        return
    from taxbreak_vllm.baselines.store import Baselines

    if not path.is_file():
        raise BaselineError(f"{path}: no such file; 'taxbreak replay' makes it")
    with Baselines(path) as store:
        yield store
