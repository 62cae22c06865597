"""Replay on the CPU: signatures per second beside one fresh process per signature, and whether two runs agree.

    python benchmarks/replay_speed.py [--captures PATH…] [--sample N] [--wait-s S] [--strict]

Replays the ops of a Llama-shaped layer in plain torch at eight batch sizes, or of `--captures`, twice, each time into a
store of its own; between the two a sample of the same signatures, each in a process started for it alone. Prints
tables and writes `benchmarks/results/replay_speed.json`.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Baseline, Outcome
from taxbreak_vllm.replay.plan import plan
from taxbreak_vllm.replay.runner import Child, Limits, run
from taxbreak_vllm.replay.task import Options, Task
from taxbreak_vllm.trace.calls import signature
from taxbreak_vllm.trace.kernels import KernelRules

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "replay_speed.json"
OPTIONS = Options(niceness=0)  # at the lowest priority, wall time would be the other processes'
COMPONENTS = ("dispatch", "library", "active")
MIN_RATIO, MAX_DIFFERENCE = 50.0, 0.10


@dataclass(frozen=True, slots=True)
class Cost:
    """Wall time, and processor time of the processes started."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Measure, print, write."""
    options = _options()
    waited_s = _wait_until_quiet(options.wait_s)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="replay-speed-") as name:
        folder = Path(name)
        tasks = plan(options.captures or [_record(folder / "trace.json")]).tasks
        first = _run(tasks, folder / "first.sqlite3")
        fresh = [_fresh(task) for task in _sample(tasks, folder / "first.sqlite3", options.sample)]
        second = _run(tasks, folder / "second.sqlite3")
        agreement = _agreement(tasks, folder / "first.sqlite3", folder / "second.sqlite3")
    result = _result(len(tasks), (first, second), fresh, agreement)
    result["machine"]["load_1min"] = {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)}
    result["machine"]["waited_s"] = round(waited_s)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(result)
    if options.strict and not all(target["met"] for target in result["targets"]):
        raise SystemExit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and repeatability of replay on the CPU.")
    parser.add_argument("--captures", type=Path, nargs="+", help="captures or traces of the CPU backend made here")
    parser.add_argument("--sample", type=int, default=12, help="signatures that get a process of their own")
    parser.add_argument("--wait-s", type=float, default=0, help="wait so long for a load below half of the cores")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a target is missed")
    return parser.parse_args()


def _wait_until_quiet(limit_s: float) -> float:
    begun_s = time.monotonic()
    while os.getloadavg()[0] > (os.cpu_count() or 1) / 2 and time.monotonic() - begun_s < limit_s:
        time.sleep(5)
    return time.monotonic() - begun_s


def _record(path: Path) -> Path:
    """Profile, in a process of its own, a layer at batch sizes from 1 to 128."""
    subprocess.run(
        [sys.executable, HERE / "torch_layer.py", path], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return path


def _run(tasks: Sequence[Task], path: Path) -> Cost:
    with Baselines(path) as store:
        return _timed(lambda: run(tasks, store, OPTIONS, Limits()))


def _sample(tasks: Sequence[Task], path: Path, size: int) -> list[Task]:
    """Of those that can be measured, so many, evenly spread."""
    entries = _entries(path, [signature(task.call) for task in tasks])
    measured = [task for task in tasks if entries[signature(task.call)].outcome is Outcome.MEASURED]
    return measured[:: max(1, len(measured) // size)][:size]


def _fresh(task: Task) -> Cost:
    def alone() -> None:
        with Child(OPTIONS) as child:
            (entry, *_) = child.serve(task, 60).entries
            assert entry.outcome is Outcome.MEASURED, f"{entry.op}: {entry.reason}"

    return _timed(alone)


def _timed(call: Callable[[], object]) -> Cost:
    cpu_s, wall_s = _children_cpu_s(), time.perf_counter()
    call()
    return Cost(time.perf_counter() - wall_s, _children_cpu_s() - cpu_s)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _agreement(tasks: Sequence[Task], first: Path, second: Path) -> dict[str, dict[str, float]]:
    """Of each component: the relative difference of its sums, and median and ninth decile of those of signatures.

    A library's front-end is compared where the rules say there is a library.
    """
    keys = [signature(task.call, kernel) for task in tasks for kernel in task.kernels]
    one, other = _entries(first, keys), _entries(second, keys)
    rules = KernelRules.load()
    found = {}
    for component in COMPONENTS:
        differences, absolute_ns, sums = [], [], [0, 0]
        for key in keys:
            pair = [entries[key] for entries in (one, other)]
            spreads = [getattr(entry, component) for entry in pair]
            if None in spreads or (component == "library" and not rules.classify_op(pair[0].op).i_lib):
                continue
            a, b = (spread.median_ns for spread in spreads)
            sums = [sums[0] + a, sums[1] + b]
            absolute_ns.append(abs(a - b))
            differences.append(abs(a - b) / max(1, (a + b) / 2))
        differences.sort()
        found[component] = {
            "signatures": len(differences),
            "median_ns": round(median(absolute_ns)),
            "of_sums": round(abs(sums[0] - sums[1]) / max(1, sum(sums) / 2), 4),
            "median": round(median(differences), 4),
            "ninth_decile": round(differences[len(differences) * 9 // 10], 4),
        }
    return found


def _entries(path: Path, keys: Sequence[str]) -> dict[str, Baseline]:
    with Baselines(path) as store:
        (environment,) = store.environments()
        return store.get(environment, keys)


def _result(
    num_tasks: int, runs: Sequence[Cost], fresh: Sequence[Cost], agreement: dict[str, dict[str, float]]
) -> dict[str, dict]:
    wall = median(num_tasks / cost.wall_s for cost in runs) * median(cost.wall_s for cost in fresh)
    cpu = median(num_tasks / cost.cpu_s for cost in runs) * median(cost.cpu_s for cost in fresh)
    worst = max(found["of_sums"] for found in agreement.values())
    return {
        "machine": _machine(),
        "signatures": num_tasks,
        "ours": {
            "wall_s": [round(cost.wall_s, 2) for cost in runs],
            "cpu_s": [round(cost.cpu_s, 2) for cost in runs],
            "signatures_per_s": round(median(num_tasks / cost.wall_s for cost in runs), 2),
        },
        "fresh_process_each": {
            "sample": len(fresh),
            "wall_s": round(median(cost.wall_s for cost in fresh), 2),
            "cpu_s": round(median(cost.cpu_s for cost in fresh), 2),
            "signatures_per_s": round(1 / median(cost.wall_s for cost in fresh), 3),
        },
        "ratio": {"wall": round(wall, 1), "cpu": round(cpu, 1)},
        "two_runs_differ_by": agreement,
        "targets": [
            {
                "target": f"at least {MIN_RATIO:g}x signatures per second",
                "value": round(wall, 1),
                "met": wall >= MIN_RATIO,
            },
            {
                "target": f"two runs agree within {MAX_DIFFERENCE:.0%} per component (sums of all signatures' medians)",
                "value": worst,
                "met": worst <= MAX_DIFFERENCE,
            },
        ],
    }


def _machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "cpu": next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "commit": commit.stdout.strip(),
    }


def _print(result: dict) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=120)
    machine = result["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['versions']['torch']}, load {machine['load_1min']}"
    )
    speed = Table(title=f"{result['signatures']} signatures, with the start of the process")
    for name in ("", "wall s", "processor s", "signatures / s"):
        speed.add_column(name, justify="right" if name else "left")
    for title, row in (
        ("one process for all (two runs)", result["ours"]),
        ("one for each", result["fresh_process_each"]),
    ):
        speed.add_row(title, str(row["wall_s"]), str(row["cpu_s"]), str(row["signatures_per_s"]))
    speed.add_row("ratio", str(result["ratio"]["wall"]), str(result["ratio"]["cpu"]), "")
    console.print(speed)
    runs = Table(title="two runs differ by")
    for name in ("component", "sums", "median", "median ns", "ninth decile", "signatures"):
        runs.add_column(name, justify="right" if name != "component" else "left")
    for component, found in result["two_runs_differ_by"].items():
        of_sums, middle, worst = (f"{found[name]:.1%}" for name in ("of_sums", "median", "ninth_decile"))
        runs.add_row(component, of_sums, middle, str(found["median_ns"]), worst, str(found["signatures"]))
    console.print(runs)
    for target in result["targets"]:
        console.print(f"{'met' if target['met'] else 'MISSED'}: {target['target']}: {target['value']}")


if __name__ == "__main__":
    main()
