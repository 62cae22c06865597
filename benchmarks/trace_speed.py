"""From file to breakdown: our whole process beside HTA's on the same file, in one run, on one core.

    python benchmarks/trace_speed.py [--traces DIR] [--quick] [--huge] [--core N] [--no-peers] [--strict]

Measures `python -m taxbreak_vllm.cli analyze --json FILE` and HTA's load + launch statistics on `h100_hf_timesformer`
and on its events 10 and 30 times over, interleaved: every round runs each tool once. Ratios are medians over rounds,
so what else the machine does meets all tools. Prints tables and writes them to `benchmarks/results/trace_speed.json`.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from peers import PEERS, Peer, install
from processes import CommandFailed, Run, run
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "trace_speed.json"
TRACE = "h100_hf_timesformer_infer.json.gz"
# Hardly any python_function events in it, so ten times the rows per MB of the other: what memory grows with.
DENSE_TRACE = "a100_hta_negqueue_infer_graph.json.gz"
SMALL_TRACE = "h100_hf_bert-small_infer.json.gz"
HUGE = ((TRACE, 1_200_000_000), (DENSE_TRACE, 1_200_000_000), (DENSE_TRACE, 3_000_000_000))
OURS = "taxbreak-vllm"


@dataclass(frozen=True, slots=True)
class Size:
    """How often the events are repeated, and how many rounds ours and the slow peers get."""

    copies: int
    rounds: int
    peer_rounds: int


SIZES = (Size(1, 7, 5), Size(10, 5, 3), Size(30, 3, 1))
QUICK_SIZES = (Size(1, 3, 2), Size(10, 3, 1))


@dataclass(slots=True)
class Case:
    """One file, and every run on it by tool."""

    title: str
    copies: int
    raw_bytes: int
    num_events: int
    runs: dict[str, list[Run]] = field(default_factory=dict)
    ratio_runs: dict[str, list[float]] = field(default_factory=dict)
    stages_ns: list[dict[str, int]] = field(default_factory=list)


def main() -> None:
    """Measure, print, write."""
    options = _options()
    trace, small = options.traces / TRACE, options.traces / SMALL_TRACE
    if not trace.is_file() or not small.is_file():
        print(f"skipped: {TRACE} and {SMALL_TRACE} are not in {options.traces.name}/ (give --traces DIR)")
        return
    pythons = {} if options.no_peers else {p: python for p in PEERS if (python := install(p, ROOT / ".bench"))}
    os.sched_setaffinity(0, {options.core})
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="trace-speed-", dir=options.temp) as folder:
        small_json = _repeat(small, Path(folder) / "small.json", 1)
        start_ns = _start_ns(small_json)
        cases = []
        for size in QUICK_SIZES if options.quick else SIZES:
            file = _repeat(trace, Path(folder) / f"{size.copies}.json", size.copies)
            cases.append(_measure(file, size, pythons, small_json))
            file.unlink()
        gz = _case_of(f"{TRACE} (gzip)", trace, 1, cases[0].num_events, cases[0].raw_bytes)
        gz.runs[OURS] = [run(_ours(trace)) for _ in range(SIZES[0].rounds)]
        huge = [_huge(options.traces / name, size, Path(folder)) for name, size in HUGE] if options.huge else []
    linking = json.loads(_stdout([sys.executable, HERE / "linking.py", *sorted(options.traces.glob("*.json.gz"))]))
    result = _result(cases, [gz, *huge], linking, start_ns, pythons)
    result["machine"]["load_1min"] = {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(result)
    if options.strict and not all(target["met"] for target in result["targets"]):
        raise SystemExit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory of `taxbreak analyze --json` beside HTA.")
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces", help="folder of the traces")
    parser.add_argument("--temp", type=Path, default=None, help="where the repeated files go (750 MB, --huge 3.1 GB)")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the one core to run on")
    parser.add_argument("--quick", action="store_true", help="1 and 10 times only, fewer rounds")
    parser.add_argument("--huge", action="store_true", help="also files of 1.2 and 3 GB, ours only")
    parser.add_argument("--no-peers", action="store_true", help="ours only")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a target is missed")
    return parser.parse_args()


def _repeat(source: Path, target: Path, copies: int) -> Path:
    run([sys.executable, HERE / "repeat_trace.py", source, target, str(copies)])
    return target


def _ours(path: Path) -> list[str | Path]:
    return [sys.executable, "-m", "taxbreak_vllm.cli", "analyze", "--json", path]


def _start_ns(small_json: Path) -> dict[str, int]:
    """What a process costs before it reads anything to speak of: the smallest trace, ten runs."""
    runs = [run(_ours(small_json)) for _ in range(11)][1:]
    return {"wall_ns": round(median(r.wall_ns for r in runs)), "cpu_ns": round(median(r.cpu_ns for r in runs))}


def _case_of(title: str, file: Path, copies: int, num_events: int, raw_bytes: int | None = None) -> Case:
    return Case(title, copies, raw_bytes or file.stat().st_size, num_events)


def _measure(file: Path, size: Size, pythons: dict[Peer, Path], small_json: Path) -> Case:
    """Run all tools in turn, round after round; a peer with fewer rounds sits the later ones out."""
    first = json.loads(_stdout(_stages(file, small_json)))  # also brings the file into the page cache
    case = _case_of(f"{size.copies}×", file, size.copies, first["events"])
    for number in range(size.rounds):
        ours = run(_ours(file))
        case.runs.setdefault(OURS, []).append(ours)
        case.stages_ns.append(json.loads(_stdout(_stages(file, small_json))))
        for peer, python in pythons.items() if number < size.peer_rounds else ():
            print(f"{case.title} round {number + 1}: {peer.title}", file=sys.stderr)
            try:
                theirs = run([python, HERE / "hta_launch_stats.py", file])
            except CommandFailed as error:
                print(f"skipped {peer.title} on {case.title}: {error}", file=sys.stderr)
                continue
            case.runs.setdefault(peer.title, []).append(theirs)
            case.ratio_runs.setdefault(peer.title, []).append(theirs.wall_ns / ours.wall_ns)
    return case


def _stages(file: Path, small_json: Path) -> list[str | Path]:
    return [sys.executable, HERE / "stages.py", file, small_json]


def _huge(source: Path, size_bytes: int, folder: Path) -> Case:
    once = _repeat(source, folder / "once.json", 1).stat().st_size
    copies = -(-size_bytes // once)
    file = _repeat(source, folder / "huge.json", copies)
    try:
        ours = run(_ours(file))
        num_events = json.loads(ours.stdout)["coverage"]["events"]
        case = _case_of(f"{source.name.removesuffix('.json.gz')} {copies}×", file, copies, num_events)
    finally:
        file.unlink()
    case.runs[OURS] = [Run(ours.wall_ns, ours.cpu_ns, ours.peak_bytes, b"")]
    return case


def _stdout(command: Sequence[str | Path]) -> bytes:
    return run(command).stdout


def _result(
    cases: Sequence[Case],
    others: Sequence[Case],
    linking: dict[str, dict[str, int]],
    start_ns: dict[str, int],
    pythons: dict[Peer, Path],
) -> dict[str, object]:
    growth = _growth(cases)
    table = [_row(case, tool) for case in (*cases, *others) for tool in case.runs]
    return {
        "machine": _machine(pythons),
        "start_s": {key.removesuffix("_ns"): value / 1e9 for key, value in start_ns.items()},
        "runs": table,
        "growth": growth,
        "linking": {name: counts | _shares(counts) for name, counts in linking.items()},
        "targets": _targets(table, growth),
    }


def _row(case: Case, tool: str) -> dict[str, object]:
    runs = case.runs[tool]
    wall_s = sorted(r.wall_ns / 1e9 for r in runs)
    peak_bytes = max(r.peak_bytes for r in runs)
    ratios = sorted(case.ratio_runs.get(tool, []))
    middle = median(wall_s)
    return {
        "file": case.title,
        "tool": tool,
        "rounds": len(runs),
        "raw_mb": round(case.raw_bytes / 1e6, 1),
        "events": case.num_events,
        "wall_s": _spread(wall_s),
        "cpu_s": _spread(sorted(r.cpu_ns / 1e9 for r in runs)),
        "mb_per_s": round(case.raw_bytes / 1e6 / middle, 1),
        "events_per_s": round(case.num_events / middle),
        "peak_mb": round(peak_bytes / 1e6, 1),
        "peak_to_raw": round(peak_bytes / case.raw_bytes, 2),
        "ours_is_faster_by": _spread(ratios) if ratios else None,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def _growth(cases: Sequence[Case]) -> list[dict[str, object]]:
    """Compare every size with the single file: the whole process, and what is left of it without its start.

    The latter is timed inside a process that has already analyzed another file: a difference of two whole processes
    would be a few hundredths of a second beside as much noise.
    """
    one = cases[0]

    def costs(case: Case) -> dict[str, float]:
        runs = case.runs[OURS]
        return {
            "process_wall": median(r.wall_ns for r in runs),
            "process_cpu": median(r.cpu_ns for r in runs),
            "decode_and_analysis_cpu": median(s["decode"] + s["analysis"] for s in case.stages_ns),
            "decode_cpu": median(s["decode"] for s in case.stages_ns),
            "analysis_cpu": median(s["analysis"] for s in case.stages_ns),
        }

    base = costs(one)
    return [
        {"copies": case.copies, "seconds": {k: round(v / 1e9, 4) for k, v in cost.items()}}
        | {"times_single": {k: round(v / base[k], 2) for k, v in cost.items()}}
        for case in cases
        for cost in [costs(case)]
    ]


def _shares(counts: dict[str, int]) -> dict[str, float]:
    return {
        "linked_ratio": round(counts["linked"] / counts["kernels"], 3) if counts["kernels"] else 0.0,
        "soda_ratio": round(counts["launch_kernel_under_aten"] / counts["kernels"], 3) if counts["kernels"] else 0.0,
    }


def _targets(rows: Sequence[dict], growth: Sequence[dict]) -> list[dict[str, object]]:
    ours = [row for row in rows if row["tool"] == OURS]
    targets = []

    def check(what: str, value: float, limit: float, *, at_least: bool) -> None:
        met = value >= limit if at_least else value <= limit
        targets.append({"target": what, "value": round(value, 2), "limit": limit, "met": met})

    for row in rows:
        if row["ours_is_faster_by"]:
            limit = 4 if row["file"] == "1×" else 8
            check(
                f"times faster than {row['tool']}, {row['file']}",
                row["ours_is_faster_by"]["median"],
                limit,
                at_least=True,
            )
    check(
        "MB/s, largest repeated file",
        [row for row in ours if row["file"].endswith("0×")][-1]["mb_per_s"],
        100,
        at_least=True,
    )
    for step in growth[1:]:
        limit = step["copies"] * 1.1
        check(
            f"cost of {step['copies']}×, decode + analysis",
            step["times_single"]["decode_and_analysis_cpu"],
            round(limit, 1),
            at_least=False,
        )
    for row in ours:
        if row["raw_mb"] > 100:
            check(f"peak memory / raw JSON, {row['file']}", row["peak_to_raw"], 2.5, at_least=False)
        if row["raw_mb"] > 512:
            check(f"peak MB, {row['file']}", row["peak_mb"], 600, at_least=False)
    return targets


def _machine(pythons: dict[Peer, Path]) -> dict[str, object]:
    cpu = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    ask = "import pandas; print(pandas.__version__)"
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "cores_used": 1,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("taxbreak-vllm", "numpy", "msgspec")},
        "peers": {
            peer.title: f"{peer.requirement}, pandas {_stdout([python, '-c', ask]).decode().strip()}"
            for peer, python in pythons.items()
        },
    }


def _print(result: dict) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=140)
    machine = result["machine"]
    console.print(
        f"{machine['cpu']}, one of {machine['cores']} cores, Python {machine['python']}, load {machine['load_1min']}",
        highlight=False,
    )
    runs = Table(title="file to breakdown, whole processes", title_justify="left")
    for head in (
        "file",
        "tool",
        "raw MB",
        "rounds",
        "seconds (min–max)",
        "MB/s",
        "events/s",
        "peak MB",
        "/ raw",
        "ours faster by",
    ):
        runs.add_column(head, justify="left" if head in ("file", "tool") else "right")
    for row in result["runs"]:
        wall, faster = row["wall_s"], row["ours_is_faster_by"]
        runs.add_row(
            row["file"],
            row["tool"],
            f"{row['raw_mb']:.0f}",
            str(row["rounds"]),
            f"{wall['median']:.2f} ({wall['min']:.2f}–{wall['max']:.2f})",
            f"{row['mb_per_s']:.0f}",
            f"{row['events_per_s']:,}",
            f"{row['peak_mb']:.0f}",
            f"{row['peak_to_raw']:.2f}",
            f"{faster['median']:.1f}× ({faster['min']:.1f}–{faster['max']:.1f})" if faster else "",
        )
    console.print(runs)
    growth = Table(title="growth, times the single file", title_justify="left")
    keys = list(result["growth"][0]["times_single"])
    for head in ("copies", *(key.replace("_", " ") for key in keys)):
        growth.add_column(head, justify="right")
    for step in result["growth"]:
        cells = [f"{step['times_single'][key]:.1f}× ({step['seconds'][key]:.2f} s)" for key in keys]
        growth.add_row(str(step["copies"]), *cells)
    console.print(growth)
    links = Table(
        title="kernels joined to a launch, and kept by *LaunchKernel* under aten:: only", title_justify="left"
    )
    for head in ("trace", "kernels", "ours", "LaunchKernel + aten"):
        links.add_column(head, justify="left" if head == "trace" else "right")
    for name, counts in result["linking"].items():
        links.add_row(
            name.removesuffix(".json.gz"),
            str(counts["kernels"]),
            f"{counts['linked_ratio']:.1%}",
            f"{counts['soda_ratio']:.1%}",
        )
    console.print(links)
    for target in result["targets"]:
        mark = "met   " if target["met"] else "MISSED"
        console.print(
            f"{mark} {target['target']}: {target['value']} (limit {target['limit']})", highlight=False, markup=False
        )


if __name__ == "__main__":
    main()
