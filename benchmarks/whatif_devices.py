"""The same program on two devices: what whatif predicts of the second from a recording on the first, and what it takes.

    python benchmarks/whatif_devices.py [--servers N] [--json FILE]

No two public traces are of one model on two devices, so both devices are simulated (`tests/rig`): random servers, the
second with kernels that take so many times as long by family, another T_sys, and at last other gaps between kernels,
which whatif is not told of. Asked are the true factors. The table has how many servers are answered, and of those how
many answers are within 6 % of the truth, or hold it in their interval. Results: `results/whatif_devices.json`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

from machine import describe_machine
from rich.console import Console
from rich.table import Table

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.changes import Change, Range
from taxbreak_vllm.whatif.predict import predict

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from rig.changed import changed, with_floor  # noqa: E402
from rig.program import Server  # noqa: E402
from rig.server import run  # noqa: E402
from rig.servers import random_server  # noqa: E402
from rig.trace import to_json, whole  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "whatif_devices.json"
WITHIN = 0.06
FAMILIES = (Family.ELEMENTWISE, Family.GEMM, Family.OTHER)  # that the rig's kernels are of
KINDS = ("kernels", "kernels and T_sys", "kernels, T_sys and gaps")


@dataclass(frozen=True, slots=True)
class Pair:
    """One server on two devices, ns; `predicted_ns` None: it was refused."""

    seed: int
    kind: str
    first_ns: int
    true_ns: int
    predicted_ns: int | None
    is_held: bool = False

    @property
    def error(self) -> float:
        """By what share the answer is off."""
        return (self.predicted_ns or 0) / self.true_ns - 1


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=400)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="devices-") as folder:
        pairs = [pair for seed in range(options.servers) for pair in _pairs(seed, Path(folder) / "trace.json")]
    rows = [_row(kind, [pair for pair in pairs if pair.kind == kind]) for kind in KINDS]
    table = Table("changed", "answered", "within 6 %", "in the interval", "median error", "worst", pad_edge=False)
    for row in rows:
        shares = (f"{row[name]:.1%}" for name in ("within_ratio", "held_ratio", "median_error", "worst_error"))
        table.add_row(str(row["changed"]), f"{row['answered']} of {row['asked']}", *shares)
    Console(width=120).print(table)
    wrong = [asdict(p) for p in pairs if p.predicted_ns is not None and abs(p.error) > WITHIN]
    found = {"machine": describe_machine("numpy"), "kinds": rows, "beyond": wrong}
    options.json.write_text(json.dumps(found, indent=1) + "\n")


def _pairs(seed: int, path: Path) -> Iterator[Pair]:
    """Record a server, and predict each kind of other device."""
    random, server = Random(f"devices {seed}"), random_server(seed)
    path.write_text(to_json(whole(run(server))))
    factors = {family: 0.4 * 6.0 ** random.random() for family in FAMILIES}
    floor_ns = max(server.floor_ns + random.randint(-1_500, 4_000), server.floor_ns - server.latency_ns + 500)
    slower = changed(server, kernels=factors)
    floored = with_floor(slower, floor_ns)
    gapped = replace(floored, gap_ns=random.randint(0, 2_000), node_gap_ns=random.randint(0, 1_500))
    asked = Change(kernels={family: Range(low=times, high=times) for family, times in factors.items()})
    with Recording.open(path, Terms(floor_ns=server.floor_ns)) as recording:
        basis, first_ns = Basis(recording), _length_ns(server)
        others = (slower, asked), *((other, replace(asked, floor_ns=floor_ns)) for other in (floored, gapped))
        for kind, (other, change) in zip(KINDS, others, strict=True):
            answer, true_ns = predict(recording, change, named="", basis=basis), _length_ns(other)
            if (window := answer.window) is None:
                yield Pair(seed, kind, first_ns, true_ns, None)
            else:
                is_held = window.low_ns <= true_ns <= window.high_ns
                yield Pair(seed, kind, first_ns, true_ns, window.predicted_ns, is_held)


def _length_ns(server: Server) -> int:
    """From the first instant of a server's run to its last."""
    it = run(server)
    return max(each.end_ns for each in (*it.spans, *it.activities)) - min(span.start_ns for span in it.spans)


def _row(kind: str, pairs: list[Pair]) -> dict[str, object]:
    answered = [pair for pair in pairs if pair.predicted_ns is not None]
    errors = [abs(pair.error) for pair in answered]
    return {
        "changed": kind,
        "asked": len(pairs),
        "answered": len(answered),
        "within_ratio": sum(error <= WITHIN for error in errors) / len(answered),
        "held_ratio": sum(pair.is_held for pair in answered) / len(answered),
        "median_error": median(errors),
        "worst_error": max(errors),
    }


if __name__ == "__main__":
    main()
