"""What copying captures to an archive costs the sidecar's machine: processor time, memory and bytes of each.

    python benchmarks/archive_cost.py [--captures N] [--json FILE]

`taxbreak archive` as a process of its own, on spools of N captures of a real step of a CPU server (17 kB of trace) and
of vLLM on an MI300X (354 kB), into a folder and into `rclone serve s3` on this machine, without a bound of the rate.
Processor time is that of our process alone, user and system; start-up, which `--captures 0` would take, is taken off. A
second run finds all of it there. Kept in `results/archive_cost.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import msgspec
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.spool.spool import Spool

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "archive_cost.json"
STEP = ROOT / "tests" / "data" / "cpu_decode"
TRACES = {
    "CPU step": STEP / "trace.json.gz",
    "MI300X step": ROOT / "tests" / "data" / "traces" / "amd_vllm_prefilldecode_piecewise.json.gz",
}

sys.path.insert(0, str(ROOT / "tests"))
from object_store import s3_server  # noqa: E402


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", type=int, default=500)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "s3") as s3:
        (Path(folder) / "share").mkdir()
        for kind, trace in TRACES.items():
            for store, url, environment in (
                ("folder", f"file://{folder}/share", {}),
                ("s3", f"{s3.url}/{len(rows)}", s3.environment()),
            ):
                rows.append(
                    {"capture": kind, "store": store} | _measured(Path(folder), trace, url, environment, options)
                )
    _print(rows)
    options.json.write_text(json.dumps({"machine": describe_machine("obstore"), "rows": rows}, indent=1) + "\n")


def _measured(
    folder: Path, trace: Path, url: str, environment: dict[str, str], options: argparse.Namespace
) -> dict[str, object]:
    num = options.captures
    start_s = _archived(_spool(folder, trace, 0), url, environment)["cpu_s"]
    spool = _spool(folder, trace, num)
    first, again = (_archived(spool, url, environment) for _ in range(2))
    return {
        "captures": num,
        "bytes_per_capture": first["num_bytes"] / num,
        "cpu_ms_per_capture": 1000 * (first["cpu_s"] - start_s) / num,
        "captures_per_s": num / first["wall_s"],
        "max_rss_mib": first["max_rss_mib"],
        "objects_again": again["objects"],
    }


def _spool(folder: Path, trace: Path, num: int) -> Path:
    root = Path(tempfile.mkdtemp(dir=folder)) / "spool"
    spool = Spool(root, max_bytes=10**12, max_captures=10**6)
    spool.make()
    data = trace.read_bytes()
    template = msgspec.json.decode((STEP / "step.json").read_bytes(), type=StepInfo)
    for number in range(num):
        info = replace(template, step_id=f"{root.parent.name}-{number}", started_unix_ns=time.time_ns())
        spool.put(info, lambda path: path.write_bytes(data) and None)
    return root


def _archived(spool: Path, url: str, environment: dict[str, str]) -> dict[str, float]:
    bounds = {"TAXBREAK_ARCHIVE_BYTES_PER_SECOND": str(10**12), "TAXBREAK_SPOOL_MAX_BYTES": str(10**12)}
    words = [sys.executable, "-m", "taxbreak_vllm.cli", "archive", str(spool), url, "--json"]
    begin_s = time.perf_counter()
    process = subprocess.Popen(words, env=os.environ | bounds | environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, told
    return {
        "objects": told["objects"],
        "num_bytes": told["num_bytes"],
        "wall_s": time.perf_counter() - begin_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "max_rss_mib": usage.ru_maxrss / 1024,
    }


def _print(rows: list[dict[str, object]]) -> None:
    table = Table(*("capture", "store", "bytes", "CPU ms each", "captures/s", "MiB"))
    for row in rows:
        table.add_row(
            str(row["capture"]),
            str(row["store"]),
            f"{row['bytes_per_capture']:,.0f}",
            f"{row['cpu_ms_per_capture']:.2f}",
            f"{row['captures_per_s']:.0f}",
            f"{row['max_rss_mib']:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
