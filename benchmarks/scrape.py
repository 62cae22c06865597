"""What it takes to be scraped and asked while the analysis runs flat out: a real sidecar, its real analyzer, one run.

    python benchmarks/scrape.py [--steps 2000] [--scrapes 300] [--traces DIR] [--load N] [--strict]

The results hold `--steps` steps of the window in both phases (the breakdown of a real vLLM step on a B200 each), the
spool is kept full of captures of that trace, so that the analyzer never rests. Then every route is asked one request
at a time over one connection, while a second client asks `/healthz` all along. Prints milliseconds, and the processor
time of the sidecar for each request, which does not depend on what else the machine does, and writes them to
`benchmarks/results/scrape.json`.
"""

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

from machine import describe_machine
from rich.console import Console
from rich.table import Table

from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import RunningServer as Sidecar
from taxbreak_vllm.demo.servers import start_sidecar
from taxbreak_vllm.model.step import STEP_BUCKETS_NS, Batch, GraphMode, Phase, Server, StepHistogram, StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.taxes.analyze import analyze

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scrape.json"
TRACE = "b200_vllm_eager_infer.json.gz"
PHASES = (Phase.PREFILL, Phase.DECODE)
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
BACKLOG = 64
TARGETS_MS = {"scrape": 20.0, "healthz": 50.0}  # p99


def main() -> None:
    """Measure, print, write."""
    options = _options()
    trace = options.traces / TRACE
    if not trace.is_file():
        print(f"skipped: {TRACE} is not in {options.traces.name}/ (give --traces DIR)")
        return
    with tempfile.TemporaryDirectory(prefix="scrape-") as folder:
        spool = Spool(Path(folder) / "spool", max_bytes=2**30, max_captures=512)
        _fill(spool, trace, options.steps, options.ranks)
        with Processes(Path(folder) / "run") as processes:
            sidecar = start_sidecar(processes, spool.root).wait()
            with _busy(spool, trace), _loaded(options.load):
                result = _measure(sidecar, spool, options)
    result["machine"] = describe_machine("taxbreak-vllm")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(result)
    if options.strict and any(result["ms"][name]["p99"] > bound for name, bound in TARGETS_MS.items()):
        raise SystemExit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scrape and request times while the analysis runs flat out.")
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces", help="folder of the traces")
    parser.add_argument("--steps", type=int, default=2000, help="steps in the window before it begins")
    parser.add_argument("--ranks", type=int, default=1, help="ranks they are of")
    parser.add_argument("--scrapes", type=int, default=300, help="scrapes; of the heavy routes a tenth of it")
    parser.add_argument("--load", type=int, default=0, help="further processes that compute all along, at niceness 10")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a target is missed")
    return parser.parse_args()


def _info(step_id: str, phase: Phase, rank: int, age_s: float = 0.0) -> StepInfo:
    return StepInfo(
        step_id=step_id,
        step_index=0,
        server=Server(server_id="vllm-bench", rank=rank, model_name="bench", device_type="cuda"),
        phase=phase,
        batch=Batch(requests=8, prompt_tokens=0, output_tokens=8),
        graph_mode=GraphMode.NONE,
        started_unix_ns=time.time_ns() - int(age_s * 1e9),
        window_ns=20_000_000,
        plain_window_ns=10_000_000,
        num_plain=100,
    )


def _fill(spool: Spool, trace: Path, num_steps: int, num_ranks: int) -> None:
    """Store steps of the last ten minutes, and a worker's state that stays fresh through the run."""
    info = _info("first", PHASES[0], 0)
    spool.put(info, lambda path: shutil.copyfile(trace, path))
    capture = spool.find("first")
    assert capture is not None
    breakdown = analyze(capture.path)
    with Results(spool.root / "results.sqlite3") as results:
        for index in range(num_steps):
            phase, rank = PHASES[index % len(PHASES)], index // len(PHASES) % num_ranks
            info = _info(f"vllm-bench-{rank}-{index}", phase, rank, age_s=600 * index / num_steps)
            step = replace(breakdown.steps[0], phase=phase, window_ns=breakdown.steps[0].window_ns * (1 + index % 7))
            results.add_step(info.step_id, info, replace(breakdown, steps=(step,)), now_ns=time.time_ns())
    counts = tuple(range(len(STEP_BUCKETS_NS) + 1))
    plain = [
        StepHistogram(phase=phase, graph_mode=mode, num_steps=sum(counts), sum_ns=10**12, bucket_counts=counts)
        for phase in PHASES
        for mode in (GraphMode.NONE, GraphMode.PIECEWISE, GraphMode.FULL)
    ]
    for rank in range(num_ranks):
        now_ns = time.time_ns()
        spool.put_state(
            WorkerState(
                server=_info("", PHASES[0], rank).server,
                started_unix_ns=now_ns,
                updated_unix_ns=now_ns + 3600 * 10**9,
                enabled=True,
                steps=tuple(plain),
                serving_ns=10**12,
                overhead_ns=10**9,
            )
        )


@contextmanager
def _busy(spool: Spool, trace: Path) -> Iterator[None]:
    """Keep the backlog of captures full, so that the analyzer never rests."""
    is_over = threading.Event()

    def feed() -> None:
        number = 0
        while not is_over.wait(0.05):
            for _ in range(BACKLOG - len(spool.pending())):
                number += 1
                info = _info(f"live-{number}", PHASES[number % len(PHASES)], 0)
                spool.put(info, lambda path: shutil.copyfile(trace, path))

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def _loaded(num_processes: int) -> Iterator[None]:
    command = [sys.executable, "-c", "import os\nos.nice(10)\nwhile os.getppid() != 1: sum(range(10**5))"]
    children = [subprocess.Popen(command) for _ in range(num_processes)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def _measure(sidecar: Sidecar, spool: Spool, options: argparse.Namespace) -> dict:
    address = sidecar.url.removeprefix("http://")
    ask = _client(address)
    ask("/metrics", {})
    before = _num_steps(ask)
    started_s = time.monotonic()
    heavy = max(10, options.scrapes // 10)
    healthz: list[float] = []
    is_over = threading.Event()
    probe = threading.Thread(target=_probe, args=(_client(address), healthz, is_over))
    probe.start()
    requests = {
        "scrape": ("/metrics", OPENMETRICS, options.scrapes),
        "scrape (text)": ("/metrics", {}, options.scrapes),
        "breakdown": ("/v1/taxbreak/breakdown", {}, heavy),
        "breakdown, no steps listed": ("/v1/taxbreak/breakdown?limit=0", {}, heavy),
        "page": ("/", {}, heavy),
        "steps": ("/v1/taxbreak/steps", {}, heavy),
        "status": ("/v1/taxbreak/status", {}, heavy),
    }
    times, cpu_ms = {}, {}
    for name, (path, headers, number) in requests.items():
        before_ns = _cpu_ns(sidecar)
        times[name] = [ask(path, headers)[0] for _ in range(number)]
        cpu_ms[name] = (_cpu_ns(sidecar) - before_ns) / 1e6 / number
    is_over.set()
    probe.join()
    wall_s = time.monotonic() - started_s
    after = _num_steps(ask)
    return {
        "steps_before": options.steps,
        "steps_after": after,
        "ranks": options.ranks,
        "load": options.load,
        "analyzed_per_s": round((after - before) / wall_s, 1),
        "pending": len(spool.pending()),
        "series": sum(not line.startswith(b"#") for line in ask("/metrics", {})[1].splitlines()),
        "load_1min": round(os.getloadavg()[0], 2),
        "ms": {name: _summary(found) for name, found in (times | {"healthz": healthz}).items()},
        "cpu_ms": {name: round(value, 2) for name, value in cpu_ms.items()},
    }


def _client(address: str) -> Callable[[str, dict[str, str]], tuple[float, bytes]]:
    """Return a function that asks over one connection and gives milliseconds and body."""
    connection = http.client.HTTPConnection(address, timeout=60)

    def ask(path: str, headers: dict[str, str]) -> tuple[float, bytes]:
        started_ns = time.perf_counter_ns()
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (path, response.status, body[:200])
        return (time.perf_counter_ns() - started_ns) / 1e6, body

    return ask


def _probe(
    ask: Callable[[str, dict[str, str]], tuple[float, bytes]], found: list[float], is_over: threading.Event
) -> None:
    while not is_over.wait(0.01):
        found.append(ask("/healthz", {})[0])


def _num_steps(ask: Callable[[str, dict[str, str]], tuple[float, bytes]]) -> int:
    return int(json.loads(ask("/v1/taxbreak/status", {})[1])["results"]["steps"])


def _cpu_ns(sidecar: Sidecar) -> int:
    """Processor time of the sidecar's own process so far; it is the guard's only child."""
    guard = sidecar.process._guard.pid
    pid = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()[0]
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) * 10**9 // os.sysconf("SC_CLK_TCK")


def _summary(times_ms: list[float]) -> dict[str, float]:
    cuts = quantiles(times_ms, n=100, method="inclusive")
    return {"n": len(times_ms), "p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "max": round(max(times_ms), 2)}


def _print(result: dict) -> None:
    table = Table(
        title=f"{result['steps_before']} steps in the window, {result['series']} series, {result['analyzed_per_s']}"
        f" captures analyzed a second, load {result['load_1min']}"
    )
    table.add_column("request")
    for name in ("n", "p50 ms", "p99 ms", "max ms", "target p99", "CPU ms"):
        table.add_column(name, justify="right")
    for name, row in result["ms"].items():
        target = TARGETS_MS.get(name)
        cells = [str(row[key]) for key in ("n", "p50", "p99", "max")]
        cpu_ms = result["cpu_ms"].get(name, "")
        table.add_row(name, *cells, f"< {target:g}" if target else "", str(cpu_ms))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
