"""How well a recording's graph reproduces it, which gates pass, and how long that takes, on every trace there is.

    python benchmarks/whatif.py [--traces DIR…] [--json FILE] [--copies 1 2 4 8]

Prints a table of traces and one of speed, and writes both to `benchmarks/results/whatif.json`. Speed is of graphs of
the same trace several times over: building it, and one pass, CPU time, each the best of three.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.intervals import union_by_group
from taxbreak_vllm.whatif.build import build
from taxbreak_vllm.whatif.gates import find_gates
from taxbreak_vllm.whatif.replay import replay

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "whatif.json"
SPEED_TRACE = "v100_kineto_resnet50_train.json.gz"
ROUNDS = 3
REPEAT = ROOT / "benchmarks" / "repeat_trace.py"


@dataclass(frozen=True, slots=True)
class Row:
    """One trace: its gates, and what constants alone get wrong of it, as shares of its window."""

    trace: str
    window_ms: float
    nodes: int
    gates: dict[str, float]
    failed: tuple[str, ...]
    window_error: float
    active_error: float
    p95_start_error: float

    @property
    def is_within(self) -> bool:
        """Whether window and active time are within 1 %, kernel starts within 0.5 % of the window."""
        return max(abs(self.window_error), abs(self.active_error)) <= 0.01 and self.p95_start_error <= 0.005


@dataclass(frozen=True, slots=True)
class Speed:
    """A graph of so many nodes: what building it and one pass over it take, s of CPU time."""

    nodes: int
    edges: int
    build_s: float
    pass_s: float


def main() -> None:
    """Measure, print, write."""
    options = _options()
    paths = [path for folder in options.traces for path in sorted(folder.glob("*.json.gz"))]
    rows = [row for path in {path.name: path for path in paths}.values() if (row := _row(path)) is not None]
    speed_of = next((path for path in paths if path.name == SPEED_TRACE), None)
    speeds = [_speed(speed_of, copies) for copies in options.copies] if speed_of else []
    _print(rows, speeds)
    found = {
        "passed": sum(not row.failed for row in rows),
        "traces": [asdict(row) | {"is_within": row.is_within} for row in rows],
        "speed": [asdict(speed) for speed in speeds],
    }
    options.json.write_text(json.dumps(found, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [ROOT.parent / "shared" / "traces", ROOT / "tests" / "data" / "traces"]
    parser.add_argument("--traces", type=Path, nargs="+", default=here, help="folders of traces")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--copies", type=int, nargs="*", default=[1, 2, 4, 8])
    return parser.parse_args()


def _row(path: Path) -> Row | None:
    """Measure one trace; None where it has nothing to replay."""
    try:
        with Recording.open(path) as recording:
            measured = recording.measured
            if not len(measured.activities.row) or not len(measured.host.call_row):
                return None
            model = build(measured, recording.shown_windows)
    except TraceFormatError:
        return None
    graph, activities = model.graph, measured.activities
    at_ns = replay(graph)
    gates = find_gates(model, graph.calibrated(), at_ns)
    start_ns = at_ns[graph.activity_node]
    length_ns = activities.end_ns - activities.start_ns
    window_ns = graph.window_ns
    device = np.where(activities.device == measured.device, 0, -1)
    active, replayed = (
        int(union_by_group(device, start, start + length_ns, 1)[0]) for start in (activities.start_ns, start_ns)
    )
    late = np.abs(start_ns - activities.start_ns)[activities.is_kernel]
    end_ns, replayed_end_ns = (int((each + graph.duration_ns).max()) for each in (graph.at_ns, at_ns))
    return Row(
        trace=path.name,
        window_ms=window_ns / 1e6,
        nodes=len(at_ns),
        gates={gate.name: gate.value for gate in gates},
        failed=tuple(gate.name for gate in gates if not gate.passes),
        window_error=(replayed_end_ns - end_ns) / window_ns,
        active_error=replayed / active - 1,
        p95_start_error=float(np.percentile(late, 95)) / window_ns if len(late) else 0.0,
    )


def _speed(path: Path, copies: int) -> Speed:
    with tempfile.TemporaryDirectory(prefix="whatif-") as folder:
        file = Path(folder) / "trace.json"
        subprocess.run([sys.executable, REPEAT, path, file, str(copies)], check=True)
        with Recording.open(file) as recording:
            measured, windows = recording.measured, recording.shown_windows
    build_s, pass_s = [], []
    for _ in range(ROUNDS):
        begun = time.process_time()
        graph = build(measured, windows).graph
        built = time.process_time()
        replay(graph)
        build_s.append(built - begun)
        pass_s.append(time.process_time() - built)
    return Speed(len(graph.at_ns), len(graph.edges), min(build_s), min(pass_s))


def _print(rows: list[Row], speeds: list[Speed]) -> None:
    console = Console(width=150)
    table = Table("trace", "window", "gates failed", "window", "active", "p95 of starts", "within", pad_edge=False)
    for row in rows:
        errors = (f"{row.window_error:+.2%}", f"{row.active_error:+.2%}", f"{row.p95_start_error:.3%}")
        failed = ", ".join(f"{name} {row.gates[name]:.1%}" for name in row.failed) or "none"
        table.add_row(row.trace, f"{row.window_ms:.1f} ms", failed, *errors, "yes" if row.is_within else "no")
    console.print(table)
    console.print(f"{sum(not row.failed for row in rows)} of {len(rows)} traces pass all gates")
    table = Table("nodes", "edges", "build", "one pass", "both, a node", pad_edge=False)
    for each in speeds:
        per_node = f"{(each.build_s + each.pass_s) / each.nodes * 1e6:.2f} µs"
        table.add_row(f"{each.nodes:,}", f"{each.edges:,}", f"{each.build_s:.3f} s", f"{each.pass_s:.3f} s", per_node)
    console.print(table)


if __name__ == "__main__":
    main()
