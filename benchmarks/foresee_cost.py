"""What the predictions behind advice cost of each trace, beside its analysis, which the page waits for too.

    python benchmarks/foresee_cost.py [--traces DIR…] [--before CHECKOUT] [--json FILE]

CPU time, the best of rounds in which all take turns, so other work on the machine weighs on all alike. `--before` has
the same measured of another checkout of this repository, by the same interpreter and in turns with this one; what it
measures is then told as a ratio too. Recordings of which advice asks nothing that can be replayed are left out. Kept
in `results/foresee_cost.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from machine import describe_machine
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "foresee_cost.json"
ROUNDS, TURNS = 5, 3
HERE = [ROOT.parent / "shared" / "traces", ROOT / "tests" / "data" / "traces", ROOT / "tests" / "data" / "cpu_decode"]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, nargs="+", default=HERE, help="folders of traces, or captures")
    parser.add_argument("--before", type=Path, help="another checkout, to be measured in turns with this one")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(dict(_measured(options.traces))))
        return
    checkouts = {"now": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    found: defaultdict[str, list[dict[str, dict[str, float]]]] = defaultdict(list)
    for _ in range(TURNS):
        for name, checkout in checkouts.items():
            found[name].append(_child(checkout, options.traces))
    best = {name: _best(turns) for name, turns in found.items()}
    rows = [_row(trace, best) for trace in best["now"]]
    _print(rows)
    options.json.write_text(json.dumps({"machine": describe_machine("numpy"), "traces": rows}, indent=1) + "\n")


def _child(checkout: Path, folders: list[Path]) -> dict[str, dict[str, float]]:
    command = [sys.executable, __file__, "--child", "--traces", *map(str, folders)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=True
    )
    measured: dict[str, dict[str, float]] = json.loads(done.stdout)
    return measured


def _measured(folders: list[Path]) -> Iterator[tuple[str, dict[str, float]]]:
    """Measure each trace in this process, with the package that it finds: CPU seconds by what was done."""
    for folder in folders:
        paths = [folder] if (folder / "step.json").is_file() else sorted(folder.glob("*.json.gz"))
        for path in paths:
            if (costs := _costs(path)) is not None:
                yield path.name, costs


def _costs(path: Path) -> dict[str, float] | None:
    from taxbreak_vllm.insight.advice import advise
    from taxbreak_vllm.insight.findings import Findings
    from taxbreak_vllm.insight.foreseen import foreseen
    from taxbreak_vllm.taxes.recording import Recording

    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        marks = [time.process_time()]

        def took(name: str, marks: list[float] = marks) -> None:
            marks.append(time.process_time())
            best[name] = min(best.get(name, float("inf")), marks[-1] - marks[-2])

        with Recording.open(path) as recording:
            breakdown, chains = recording.breakdown, Findings(recording).chains
            advise([breakdown], fusion=chains)
            took("analysis_s")
            forecasts = foreseen(recording, breakdown, fusion=chains).forecasts
            took("foreseen_s")
            if not any(each.refused is None for each in forecasts):
                return None
            best["events"] = recording.survey.num_ops + recording.survey.num_activities
            best["changes"] = len(forecasts)
    return best


def _best(turns: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {trace: {name: min(turn[trace][name] for turn in turns) for name in turns[0][trace]} for trace in turns[0]}


def _row(trace: str, best: dict[str, dict[str, dict[str, float]]]) -> dict[str, object]:
    now = best["now"][trace]
    row: dict[str, object] = {"trace": trace, **now}
    row["of_analysis"] = now["foreseen_s"] / now["analysis_s"]
    before = best.get("before", {}).get(trace)
    row["of_before"] = now["foreseen_s"] / before["foreseen_s"] if before else None
    return row


def _print(rows: list[dict[str, object]]) -> None:
    table = Table("trace", "events", "analysis", "foreseen", "of analysis", "of before", pad_edge=False)
    for row in rows:
        seconds = (f"{row[name]:.3f} s" for name in ("analysis_s", "foreseen_s"))
        before = "" if row["of_before"] is None else f"{row['of_before']:.2f}"
        table.add_row(
            str(row["trace"]),
            f"{row['events']:,}",
            *seconds,
            f"{row['of_analysis']:.2f}",
            before,
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
