"""The traffic of one server as it was kept: a folder in, the rows of its engines and of its API servers out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taxbreak_vllm.iterations.rows import Column
from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.spool.layout import API, ENGINE, TRAFFIC
from taxbreak_vllm.traffic.files import sources
from taxbreak_vllm.traffic.log import read_log
from taxbreak_vllm.traffic.rows import Added, Int64, Row, Scheduled, Setup, Stamped, unstamped


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one engine or API server kept, oldest first."""

    setup: Setup
    rows: Sequence[Row]

    @property
    def turns(self) -> Int64:
        """The turns of an engine's loop (turns, columns of `iterations.rows.Column`), in order."""
        names = [column.name.lower() for column in Column]
        return unstamped([row for row in self.rows if isinstance(row, Stamped)], self.setup, names)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it was deleted: its first request and its first step are there."""
        first_add = next((row for row in self.rows if isinstance(row, Added)), None)
        first_step = next((row for row in self.rows if isinstance(row, Scheduled)), None)
        return first_add is not None and first_add.number == 0 and first_step is not None and first_step.number == 1


def traffic_dirs(path: Path) -> list[Path]:
    """Find the folders of traffic in a spool, in the folder of a server, or at the path itself, the newest last."""
    candidates = [path, path / TRAFFIC, *path.glob(f"*/{TRAFFIC}")]
    return sorted((folder for folder in candidates if sources(folder)), key=lambda folder: folder.stat().st_mtime_ns)


def read_engines(path: Path) -> list[Recorded]:
    """Read what the engines of one server kept; of several servers in a spool the newest is taken.

    Raises WorkloadError where there is none, SpoolError for what cannot be read.
    """
    return _read(path, ENGINE)


def read_apis(path: Path) -> list[Recorded]:
    """Read the same of its API servers; none where they were not followed."""
    try:
        return _read(path, API)
    except WorkloadError:
        return []


def _read(path: Path, kind: str) -> list[Recorded]:
    folders = traffic_dirs(path)
    names = [source for source in sources(folders[-1]) if source.startswith(kind)] if folders else []
    if not names:
        raise WorkloadError(
            f"{path}: holds no traffic of an engine; name a spool, or the folder SPOOL/SERVER of a server that ran "
            "with the plugin"
        )
    return [Recorded(*read_log(folders[-1], name)) for name in names]
