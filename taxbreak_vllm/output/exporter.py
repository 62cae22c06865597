"""What an exporter is: recordings go in one after the other, a file or folder comes out.

To add one, write a class with these two calls and name it in `cli.analyses`.
"""

from pathlib import Path
from typing import Protocol

from taxbreak_vllm.insight.findings import Findings


class Exporter(Protocol):
    """Collects what it needs of each recording, which may be closed after that."""

    def add(self, findings: Findings) -> None: ...

    def write(self, target: str | Path) -> None:
        """Write it all; raises TaxbreakError where the disk refuses."""
        ...
