"""The child that reads captures' traces for routes and prints what it is asked for.

`python -m taxbreak_vllm.service.processes.trace_reader WHAT BASELINES CAPTURE`, where WHAT is `timeline` (the step
instant by instant), `fusion` (its chains of kernels) or `stacks` (its ΔFT frame by frame), each one JSON object, or
`pprof` or `speedscope`, a file for those. BASELINES need not be there; where it is, the step is measured on the same
terms as its breakdown was.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms

if TYPE_CHECKING:  # each is loaded by who needs it
    from taxbreak_vllm.insight.findings import Findings

_NICENESS = 10


def _timeline(findings: "Findings") -> bytes:
    from taxbreak_vllm.output.page.named import NamedTimeline

    return NamedTimeline.of(findings.timelines([0])[0]).to_json()


def _fusion(findings: "Findings") -> bytes:
    from taxbreak_vllm.output.page.named import NamedChains

    return NamedChains.of(findings.chains).to_json()


def _pprof(findings: "Findings") -> bytes:
    from taxbreak_vllm.output.pprof import Pprof

    file = Pprof()
    file.add(findings)
    return file.to_bytes()


def _speedscope(findings: "Findings") -> bytes:
    from taxbreak_vllm.output.speedscope import Speedscope

    file = Speedscope()
    file.add(findings)
    return file.to_json()


_ANSWERS: "Mapping[str, Callable[[Findings], bytes]]" = {
    "timeline": _timeline,
    "fusion": _fusion,
    "stacks": lambda findings: findings.stacks.trimmed().to_json(),
    "pprof": _pprof,
    "speedscope": _speedscope,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was asked for; one line on standard error and 1 where a capture cannot be read."""
    what, baselines, path = sys.argv[1:] if arguments is None else arguments
    os.nice(_NICENESS)
    try:
        with _store(Path(baselines)) as store:
            data = _answer(what, path, store)
    except TaxbreakError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return 0


def _answer(what: str, path: str, store: Baselines | None) -> bytes:
    from taxbreak_vllm.insight.findings import Findings

    with Recording.open(path, Terms(baselines=store), with_frames=True) as recording:
        return _ANSWERS[what](Findings(recording))


def _store(path: Path) -> AbstractContextManager[Baselines | None]:
    return Baselines(path) if path.is_file() else nullcontext()


if __name__ == "__main__":
    sys.exit(main())
