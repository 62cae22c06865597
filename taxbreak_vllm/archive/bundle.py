"""One capture as one object: a tar of its files, the same bytes whenever and wherever it is packed.

In: a capture in a spool. Out: `state.json` (what its worker says of its model, device and settings, without what counts
on), `step.json` and `trace.json.gz`, stored as they are, in this order, without times and owners.
"""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from taxbreak_vllm.model.errors import ArchiveError, SpoolError
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.spool.layout import NAME, STATE, STEP, TRACE

SUFFIX = "tar"


def pack(capture: Capture) -> bytes:
    """Return the object of a capture; raises SpoolError for one that is gone or not whole."""
    try:
        files = {STEP: (capture.path / STEP).read_bytes(), TRACE: capture.trace_path.read_bytes()}
    except OSError as error:
        raise SpoolError(f"{capture.path}: {error.strerror or error}") from error
    state = capture.read_state()
    return pack_files(files if state is None else {STATE: msgspec.json.encode(_standing(state)), **files})


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """Return a tar of these files, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(data), 0o600
            tar.addfile(about, io.BytesIO(data))
    return buffer.getvalue()


def files_of(data: bytes) -> dict[str, bytes]:
    """Return the files of an object; raises ArchiveError for what is no capture."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = {m.name: tar.extractfile(m) for m in tar if m.isreg() and m.name in (STATE, STEP, TRACE)}
            files = {name: member.read() for name, member in members.items() if member is not None}
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ArchiveError(f"no capture: {error}") from error
    if STEP not in files or TRACE not in files:
        raise ArchiveError(f"no capture: it holds {', '.join(files) or 'nothing of one'}")
    return files


def info_of(data: bytes) -> StepInfo:
    """Return what a packed capture tells of its step; raises ArchiveError for what is no capture."""
    try:
        return msgspec.json.decode(files_of(data)[STEP], type=StepInfo)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArchiveError(f"no capture: {STEP}: {error}") from error


def unpack(data: bytes, folder: Path) -> Capture:
    """Lay a packed capture out in a folder as it lay in its spool, to be analyzed; the caller removes it.

    Raises ArchiveError for what is no capture, OSError where the disk refuses.
    """
    files, info = files_of(data), info_of(data)
    if not NAME.fullmatch(info.step_id):
        raise ArchiveError(f"no capture: {info.step_id!r} cannot name a folder")
    rank_dir = folder / str(info.server.rank)
    path = rank_dir / info.step_id
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if STATE in files:
        (rank_dir / STATE).write_bytes(files[STATE])
    for name in (TRACE, STEP):
        (path / name).write_bytes(files[name])
    return Capture(path)


def _standing(state: WorkerState) -> WorkerState:
    """Return what is said once: what counts on would make another object of a capture that is packed again."""
    begin = state.started_unix_ns
    return WorkerState(
        server=state.server,
        started_unix_ns=begin,
        updated_unix_ns=begin,
        enabled=True,
        settings=state.settings,
        model=state.model,
        model_reason=state.model_reason,
        device=state.device,
    )
