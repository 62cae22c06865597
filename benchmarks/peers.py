"""The other tools, each in a venv of its own under a folder that git ignores."""

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Peer:
    """A tool on PyPI: what to install, and how its column is headed."""

    title: str
    package: str
    version: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


# traceinsight is the name under which HTA's authors publish versions after 0.5.
PEERS = (
    Peer("HTA", "HolisticTraceAnalysis", "0.5.0"),
    Peer("traceinsight", "traceinsight", "0.6.1"),
)


def install(peer: Peer, cache: Path) -> Path | None:
    """Return the Python that has this tool, building its venv the first time; None, with a line, where pip failed."""
    folder = cache / f"{peer.package.lower()}-{peer.version}"
    python, done = folder / "bin" / "python", folder / "installed"
    if done.is_file():
        return python
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n", encoding="utf-8")
    print(f"installing {peer.requirement} into a venv of its own", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", peer.requirement]
    result = subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        print(f"skipped {peer.requirement}: pip failed: {result.stderr.strip()[-200:]}", file=sys.stderr)
        return None
    done.touch()
    return python
