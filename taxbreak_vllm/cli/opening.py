"""How a command opens a trace: one too large for memory waits in the spool that the settings name, else in TMPDIR.

In a pod the spool is the one place with room: a container that fills its `/tmp` takes the pod with it, vLLM included.
Nothing here is loaded, and no setting read, for a trace that fits in memory.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.large.bins import Room, TemporaryRoom


def opened(path: Path, terms: Terms, *, with_frames: bool = False) -> AbstractContextManager[Recording]:
    """Open a trace or a capture on terms, `with_frames` with the Python functions; raises as `Recording.open` does."""
    is_named = "TAXBREAK_SPOOL" in os.environ
    find_room = _spool_room if is_named else TemporaryRoom
    return Recording.open(path, terms, with_frames=with_frames, find_room=find_room)


def _spool_room() -> Room:
    from taxbreak_vllm.settings import load_settings
    from taxbreak_vllm.spool.spill import SpillRoom
    from taxbreak_vllm.spool.spool import Spool

    settings = load_settings()
    return SpillRoom(
        Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
    )
