"""What a move of a what-if slider takes: asked of the child that keeps its recordings, and of a new one each time.

    python benchmarks/slider_cost.py [--traces DIR…] [--json FILE]

Each trace becomes the recorded step of a spool, and is asked as the page asks: another factor of the host each time,
with the timeline. Both children take turns; wall time, the median of the moves. Results: `results/slider_cost.json`.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import msgspec
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from taxbreak_vllm.model.replays import Question, Reply
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.service.http.trace_child import TraceChild

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "slider_cost.json"
TRACES = [ROOT.parent / "shared" / "traces", ROOT / "tests" / "data" / "traces"]
MOVES = [round(0.5 + 0.05 * number, 2) for number in range(9)]
LIMIT_S = 60.0
MODULE = "taxbreak_vllm.service.processes.trace_replayer"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, nargs="+", default=TRACES, help="folders of traces")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    paths = {path.name: path for folder in options.traces for path in sorted(folder.glob("*.json.gz"))}
    with tempfile.TemporaryDirectory(prefix="slider-") as folder:
        rows = [row for path in paths.values() if (row := _row(path, Path(folder))) is not None]
    table = Table("trace", "first move", "next move", "a process each", "ratio", pad_edge=False)
    for row in rows:
        first, then, each = (f"{row[name] * 1e3:.1f} ms" for name in ("first_s", "next_s", "new_s"))
        table.add_row(str(row["trace"]), first, then, each, f"{row['ratio']:.3f}")
    Console(width=120).print(table)
    options.json.write_text(json.dumps({"machine": describe_machine("numpy"), "traces": rows}, indent=1) + "\n")


def _row(path: Path, folder: Path) -> dict[str, object] | None:
    """Measure one trace; None where it cannot be replayed."""
    capture = _capture(path, folder)
    kept, first_s, next_s, new_s = _child(), 0.0, [], []
    for number, factor in enumerate(MOVES):
        took_s, is_told = _ask(kept, capture, factor)
        if not is_told:
            kept.close()
            return None
        if number:
            next_s.append(took_s)
        else:
            first_s = took_s
        new = _child()
        new_s.append(_ask(new, capture, factor)[0])
        new.close()
    kept.close()
    ratio = median(next_s) / median(new_s)
    return {"trace": path.name, "first_s": first_s, "next_s": median(next_s), "new_s": median(new_s), "ratio": ratio}


def _child() -> TraceChild:
    return TraceChild((sys.executable, "-m", MODULE, "none", str(10**9), str(4 * 10**9)))


def _ask(child: TraceChild, capture: Path, factor: float) -> tuple[float, bool]:
    question = msgspec.json.encode(Question([str(capture)], {"host": [str(factor)]}, timeline=True))
    begun_s = time.perf_counter()
    reply = msgspec.json.decode(child.ask(question, limit_s=LIMIT_S), type=Reply)
    took_s = time.perf_counter() - begun_s
    return took_s, bool(reply.answers) and msgspec.json.decode(reply.answers[0])["refused"] is None


def _capture(path: Path, folder: Path) -> Path:
    info = StepInfo(
        step_id=path.name,
        step_index=0,
        server=Server(server_id="bench", device_type="cuda"),
        phase=Phase.DECODE,
        batch=Batch(),
        graph_mode=GraphMode.NONE,
        started_unix_ns=0,
        window_ns=1,
    )
    capture = folder / path.name.removesuffix(".json.gz")
    capture.mkdir()
    (capture / "step.json").write_bytes(msgspec.json.encode(info))
    shutil.copy(path, capture / "trace.json.gz")
    return capture


if __name__ == "__main__":
    main()
