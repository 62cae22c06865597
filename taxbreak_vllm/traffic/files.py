"""Where the files of a server's traffic lie, and what they are called: `traffic/SOURCE-NUMBER.jsonl.gz`."""

from pathlib import Path

SUFFIX = ".jsonl.gz"


def all_files(folder: Path) -> list[Path]:
    """List the files of a folder, of each source the oldest first."""
    return [path for source in sources(folder) for path in files_of(folder, source)]


def sources(folder: Path) -> list[str]:
    """List the engines and API servers that have files there, by their folders' names."""
    return sorted({path.name.removesuffix(SUFFIX).rpartition("-")[0] for path in folder.glob(f"*{SUFFIX}")})


def files_of(folder: Path, source: str) -> list[Path]:
    """List the files of one engine or API server, the oldest first."""
    return sorted(path for path in folder.glob(f"{source}-*{SUFFIX}") if number_of(path) >= 0)


def number_of(path: Path) -> int:
    """Return the number in a file's name, -1 where it is none of ours."""
    number = path.name.removesuffix(SUFFIX).rpartition("-")[2]
    return int(number) if number.isdigit() and len(number) == 8 else -1
