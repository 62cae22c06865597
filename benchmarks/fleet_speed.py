"""How fast a fleet's captures are analyzed: here, on Ray with a worker killed, and one `taxbreak analyze` at a time.

In: nothing. Captures are made with other times, hosts and known effects (`tests/rig/fleet.py`), a quarter each of a
recorded step of a CPU server and of traces of one step of an H100, an A100 and an MI300X; the store is a folder. Out:
`results/fleet_speed.json`: captures a second beside a loop of processes on one core, time and memory for a quarter and
for all of them, whether the rows of Ray's tasks are those of this machine's processes, and what a thousand hosts with a
capture a minute each take by that.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pyarrow as pa
from machine import ROOT, describe_machine

sys.path.insert(0, str(ROOT / "tests"))

from rig.fleet import DATA, RECORDED, Fleet, RayKiller, capture_of, fill

from taxbreak_vllm.archive.bundle import unpack
from taxbreak_vllm.archive.layout import Key
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.fleet.analyze import MAX_BATCH, analyze, plan
from taxbreak_vllm.fleet.batch import ANALYSES
from taxbreak_vllm.fleet.report import report
from taxbreak_vllm.fleet.steps import read_steps
from taxbreak_vllm.fleet.table import from_parquet, to_parquet
from taxbreak_vllm.model.fleet import StepRow
from taxbreak_vllm.model.version import package_version

RESULTS = ROOT / "benchmarks" / "results" / "fleet_speed.json"
MINUTES_A_DAY = 24 * 60
NUM_HOSTS = 100


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captures", type=int, default=20_000)
    parser.add_argument("--loop", type=int, default=30, help="captures for the loop of processes")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="taxbreak-fleet-", dir="/var/tmp") as name:
        result = measure(Path(name), options)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Do all of it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # of which no memory is left in this process
        traces = sorted(DATA.glob("traces/*.json.gz"))
        recorded = [RECORDED, *pool.map(capture_of, traces, [folder / path.name for path in traces])]
        keys, _, _ = [
            pool.submit(filled, folder / name, recorded, num).result()
            for name, num in (
                ("whole", options.captures),
                ("ray", options.captures),
                ("quarter", options.captures // 4),
            )
        ]
    whole, small, other = (Store(f"file://{folder / name}") for name in ("whole", "quarter", "ray"))
    loop = loop_of_processes(whole, keys[:: max(1, len(keys) // options.loop)], folder)
    few, many = local(small, options.jobs), local(whole, options.jobs)
    begun_s = time.monotonic()
    steps = read_steps(whole, package_version())
    found = report(steps, archive=whole.url, version=package_version())
    told_s = time.monotonic() - begun_s
    result: dict[str, object] = {
        "machine": describe_machine("numpy", "pyarrow", "obstore", "ray"),
        "captures": len(keys),
        "recorded": [path.name for path in recorded],
        "capture_bytes": num_bytes(whole) // len(keys),
        "jobs": options.jobs,
        "loop": loop,
        "quarter": few,
        "whole": many,
        "times_the_loop": many["per_s"] / loop["per_s"],
        "growth": many["elapsed_s"] / few["elapsed_s"] / (len(keys) / few["captures"]),
        "report_s": told_s,
        "report": {
            "found": sorted({(one.figure, round(one.shift.change, 4)) for one in found.changes if one.is_found}),
            "apart": sorted({one.host for one in found.outliers}),
        },
        "row_bytes": row_bytes(whole),
    }
    if not options.no_ray:
        result["ray"] = on_ray(other, whole)
    result["thousand_hosts"] = on_paper(result)
    return result


def made(recorded: Sequence[Path], num: int) -> Iterator[tuple[Key, bytes]]:
    """Yield captures of a hundred hosts, which half-way go to a version that takes 5 % longer; one in 25 is slow."""
    share = NUM_HOSTS // len(recorded)
    for path in recorded:
        fleet = Fleet(
            name=path.name.split(".")[0],
            num_hosts=share,
            num_captures=num // NUM_HOSTS,
            days=7,
            change=1.05,
            slow={3: 1.1},
        )
        yield from fleet.captures(path)


def num_bytes(store: Store) -> int:
    """Return what the captures of an archive in a folder take."""
    return sum(path.stat().st_size for path in Path(store.url.removeprefix("file://")).rglob("*.tar"))


def row_bytes(store: Store) -> float:
    """Return what a row takes in an object of as many as a server with a capture a minute has."""
    tables = [from_parquet(store.get(key)) for key in store.list(ANALYSES.format(package_version()))]
    rows = [msgspec.convert(row, StepRow) for row in pa.concat_tables(tables).slice(0, MAX_BATCH).to_pylist()]
    return len(to_parquet(rows)) / len(rows)


def filled(folder: Path, recorded: Sequence[Path], num: int) -> list[Key]:
    """Make an archive of captures."""
    folder.mkdir()
    return fill(Store(f"file://{folder}"), made(recorded, num))


def loop_of_processes(store: Store, keys: list[Key], folder: Path) -> dict[str, float]:
    """Analyze captures by a process each, one after the other."""
    paths = [unpack(store.get(key), folder / "loop" / key.digest).path for key in keys]
    begun_s = time.monotonic()
    for path in paths:
        command = [sys.executable, "-m", "taxbreak_vllm.cli", "analyze", "--json", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    elapsed_s = time.monotonic() - begun_s
    return {"captures": len(keys), "elapsed_s": elapsed_s, "per_s": len(keys) / elapsed_s}


def local(store: Store, jobs: int) -> dict[str, float]:
    """Analyze an archive on this machine's processes, and tell the largest of them."""
    begun_s, largest = time.monotonic(), [0.0]
    found = plan(store, package_version())
    count, broken = analyze(
        found, jobs=jobs, progress=lambda _: largest.append(max(largest.pop(), largest_worker_mib()))
    )
    elapsed_s = time.monotonic() - begun_s
    assert not broken
    return {
        "captures": count.num_analyzed,
        "elapsed_s": elapsed_s,
        "per_s": count.num_analyzed / elapsed_s,
        "worker_mib": largest[0],
        "own_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def largest_worker_mib() -> float:
    """Return the most memory that a process of the analysis has had: they are children of a child of this one."""
    parents, most = {}, {}
    for process in Path("/proc").iterdir():
        with suppress(OSError, ValueError, KeyError):
            lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
            most[int(process.name)] = int(lines["VmHWM"].split()[0]) / 1024
            parents[int(process.name)] = int(lines["PPid"])
    return max((most[pid] for pid, parent in parents.items() if parents.get(parent) == os.getpid()), default=0.0)


def on_ray(store: Store, like: Store) -> dict[str, object]:
    """Analyze it on a Ray of two workers, kill one of them in the middle, and compare the objects."""
    os.environ["PYTHONPATH"] = str(ROOT)
    killer = RayKiller(lambda count: count.num_analyzed > count.num_found // 3)
    begun_s = time.monotonic()
    count, broken = analyze(plan(store, package_version()), jobs=1, ray="local", progress=killer)
    elapsed_s = time.monotonic() - begun_s
    paths = [sorted(key.path for key in one.list(ANALYSES.format(package_version()))) for one in (store, like)]
    return {
        "captures": count.num_analyzed,
        "broken": len(broken),
        "elapsed_s": elapsed_s,
        "per_s": count.num_analyzed / elapsed_s,
        "killed": len(killer.killed),
        "same_objects": paths[0] == paths[1],
    }


def on_paper(result: dict) -> dict[str, float]:
    """Return what a thousand hosts take that keep a capture a minute each, by what was measured."""
    a_day = 1000 * MINUTES_A_DAY
    return {
        "captures_a_day": a_day,
        "archive_gb_a_day": a_day * result["capture_bytes"] / 1e9,
        "archive_mbit_per_s": a_day * result["capture_bytes"] * 8 / 86_400 / 1e6,
        "core_hours_a_day": a_day / (result["whole"]["per_s"] / result["jobs"]) / 3600,
        "rows_gb_a_day": a_day * result["row_bytes"] / 1e9,
    }


if __name__ == "__main__":
    main()
