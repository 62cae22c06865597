"""Thirty thousand requests to a server that records much: each answer compared, memory and disk watched.

    python benchmarks/soak.py [--requests N] [--sample-every N] [--concurrency N]

A server with the plugin and a sidecar, and a server without, are asked the same in turns. Prompts are those whose every
greedy token wins by a clear margin, so that an answer does not depend on who else is in the batch: any difference is a
fault. Resident memory of every process is sampled; its slope (Theil-Sen) comes with its 95 % interval, and the server
without the plugin tells what vLLM's own is. The spool is measured from outside against its bound, a small one.
Prints a table and writes `benchmarks/results/soak.json`; exit 1 where anything was lost, differed, grew or overflowed.
"""

import argparse
import contextlib
import json
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median

import httpx
from machine import describe_machine
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import WORKER_EXTENSION, RunningServer, start_sidecar, start_vllm

RESULTS = Path(__file__).resolve().parent / "results" / "soak.json"
SPOOL_BYTES, SPOOL_CAPTURES = 4 * 2**20, 64
MIN_GROWTH_MB = 1.0
NUM_CANDIDATES, NUM_PROMPTS = 300, 40
MIN_MARGIN = 2e-5  # in log probability; rounding in another order moves it by about 1e-6
WEIGHTS = ("--load-format", "safetensors")
_WARM = 0.5  # of the time: caches fill and allocators settle, of kernels by shape for minutes
_NUM_BLOCKS = 24
_WORDS = ("host", "device", "launch", "kernel", "step", "token", "batch", "queue", "graph", "prefill", "decode", "idle")


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, how many tokens to answer, and the answer of a server without us."""

    prompt: str
    num_tokens: int
    answer: str


@dataclass(slots=True)
class Watch:
    """What was seen from outside while requests ran: memory by process over time, and the spool at its largest."""

    spool: Path
    folders: dict[str, Path]
    seconds: list[float] = field(default_factory=list)
    rss_mb: dict[str, list[float]] = field(default_factory=dict)
    spool_bytes: int = 0
    spool_bytes_with_unfinished: int = 0
    spool_captures: int = 0
    num_spool_samples: int = 0

    def run(self, is_over: threading.Event) -> None:
        """Sample until told that it is over."""
        started_s = time.monotonic()
        pids = {name: pid for folder in self.folders.items() for name, pid in _processes(*folder)}
        self.rss_mb = {name: [] for name in pids}
        next_s = started_s
        while not is_over.wait(0.1):
            self._measure_spool()
            if time.monotonic() >= next_s:
                next_s += 2.0
                self.seconds.append(time.monotonic() - started_s)
                for name, pid in pids.items():
                    self.rss_mb[name].append(_rss_mb(pid))

    def _measure_spool(self) -> None:
        whole = unfinished = captures = 0
        for capture in self.spool.glob("*/*/*"):
            with contextlib.suppress(OSError):
                if capture.is_dir():
                    size = sum(entry.stat().st_size for entry in os.scandir(capture))
                    if capture.name.startswith("."):
                        unfinished += size
                    else:
                        whole, captures = whole + size, captures + 1
        self.spool_bytes = max(self.spool_bytes, whole)
        self.spool_bytes_with_unfinished = max(self.spool_bytes_with_unfinished, whole + unfinished)
        self.spool_captures = max(self.spool_captures, captures)
        self.num_spool_samples += 1


@dataclass(frozen=True, slots=True)
class Slope:
    """How a process's memory changes (MB per hour), its 95 % interval, what it held at the median (MB), over how long.

    An allocator takes memory in chunks: what is less than a megabyte over the whole time is none of growth.
    """

    mb_per_hour: float
    low: float
    high: float
    median_mb: float
    hours: float

    @property
    def is_flat(self) -> bool:
        return self.low <= 0 or self.mb_per_hour * self.hours < MIN_GROWTH_MB


def main() -> None:
    """Run, print, write."""
    options = _options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with contextlib.ExitStack() as stack:
        folders = {
            name: Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-"))) for name in ("on", "absent")
        }
        started = {name: stack.enter_context(Processes(folder)) for name, folder in folders.items()}
        model = _write_model(folders["on"] / "tiny-llama")
        spool = folders["on"] / "spool"
        env = {
            "TAXBREAK_SPOOL": str(spool),
            "TAXBREAK_SAMPLE_EVERY": str(options.sample_every),
            "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1",  # as often as asked for
            "TAXBREAK_SPOOL_MAX_BYTES": str(SPOOL_BYTES),
            "TAXBREAK_SPOOL_MAX_CAPTURES": str(SPOOL_CAPTURES),
            "TAXBREAK_RESULTS": str(folders["on"] / "results.sqlite3"),
        }
        _say("starting two servers and a sidecar")
        absent = start_vllm(started["absent"], model, flags=WEIGHTS, env={"VLLM_PLUGINS": ""})
        on = start_vllm(started["on"], model, flags=(*WEIGHTS, *WORKER_EXTENSION), env=env)
        sidecar = start_sidecar(started["on"], spool, env=env).wait()
        for server in (absent, on):
            server.wait()
        answers, margin = _choose_prompts(absent, model.name)
        _say(f"{len(answers)} prompts of margin {margin:.1e}; {options.requests} requests to each server")
        if margin < MIN_MARGIN:
            raise SystemExit("the answers of this model hang on rounding")
        for server in (absent, on):
            _ask_all(server, model.name, answers, num_requests=200, concurrency=options.concurrency, seed=1)
        watch = Watch(spool, folders)
        outcome = _soak(watch, {"on": on, "absent": absent}, model.name, answers, options)
        metrics = _metrics(sidecar)
    slopes = {name: _slope(watch.seconds, values) for name, values in watch.rss_mb.items()}
    faults = _faults(outcome, slopes, watch, metrics)
    result = {
        "machine": describe_machine("vllm", "torch", "taxbreak-vllm"),
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "margin": margin,
        "requests": outcome,
        "rss": {name: asdict(slope) | {"is_flat": slope.is_flat} for name, slope in slopes.items()},
        "spool": {
            "max_bytes": SPOOL_BYTES,
            "max_captures": SPOOL_CAPTURES,
            "seen_bytes": watch.spool_bytes,
            "seen_bytes_with_unfinished": watch.spool_bytes_with_unfinished,
            "seen_captures": watch.spool_captures,
            "samples": watch.num_spool_samples,
        },
        "metrics": metrics,
        "faults": faults,
        "series": {"seconds": watch.seconds, "rss_mb": watch.rss_mb},
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    _report(result, slopes)
    sys.exit(1 if faults else 0)


def _write_model(folder: Path) -> Path:
    """Write a tiny model with weights wide enough that its answers do not hang on rounding, as dummy weights do."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    write_tiny_llama(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.2)
    model.save_pretrained(folder)
    return folder


def _choose_prompts(server: RunningServer, model: str) -> tuple[list[Question], float]:
    """Make up prompts, ask them one at a time, and return those of the widest margins, and the narrowest of these."""
    source = random.Random(0)
    found: list[tuple[float, Question]] = []
    with httpx.Client(timeout=60.0) as client:
        for _ in range(NUM_CANDIDATES):
            prompt = " ".join(source.choices(_WORDS, k=source.choice((2, 4, 30))))
            num_tokens = source.choice((1, 4, 4, 8))
            body = _body(model, prompt, num_tokens) | {"logprobs": 2, "return_tokens_as_token_ids": True}
            choice = client.post(f"{server.url}/v1/completions", json=body).raise_for_status().json()["choices"][0]
            tops = [sorted(top.values(), reverse=True) for top in choice["logprobs"]["top_logprobs"]]
            margin = min(top[0] - top[1] for top in tops)
            found.append((margin, Question(prompt, num_tokens, choice["text"])))
    found.sort(key=lambda pair: pair[0], reverse=True)
    chosen = found[:NUM_PROMPTS]
    return [question for _, question in chosen], chosen[-1][0]


def _soak(
    watch: Watch,
    servers: dict[str, RunningServer],
    model: str,
    answers: Sequence[Question],
    options: argparse.Namespace,
) -> dict[str, dict[str, object]]:
    is_over = threading.Event()
    watcher = threading.Thread(target=watch.run, args=(is_over,))
    watcher.start()
    totals = {name: {"asked": 0, "answered": 0, "failed": 0, "different": 0, "seconds": 0.0} for name in servers}
    rounds = math.ceil(options.requests / options.round)
    try:
        for number in range(rounds):
            for name, server in servers.items():
                began_s = time.monotonic()
                counts = _ask_all(
                    server, model, answers, num_requests=options.round, concurrency=options.concurrency, seed=number
                )
                for key, value in counts.items():
                    totals[name][key] += value
                totals[name]["seconds"] += time.monotonic() - began_s
            if (number + 1) % 10 == 0 or number + 1 == rounds:
                _say(f"{(number + 1) * options.round} requests to each: {totals['on']}")
    finally:
        is_over.set()
        watcher.join()
    return {name: dict(counts) for name, counts in totals.items()}


def _ask_all(
    server: RunningServer,
    model: str,
    answers: Sequence[Question],
    *,
    num_requests: int,
    concurrency: int,
    seed: int,
) -> dict[str, int]:
    """Send requests, so many at a time, and count what came back."""
    source = random.Random(seed)
    counts = {"asked": num_requests, "answered": 0, "failed": 0, "different": 0}
    limits = httpx.Limits(max_connections=concurrency)
    with httpx.Client(timeout=60.0, limits=limits) as client, ThreadPoolExecutor(concurrency) as pool:

        def ask(question: Question) -> str:
            body = _body(model, question.prompt, question.num_tokens)
            try:
                response = client.post(f"{server.url}/v1/completions", json=body)
                text = response.raise_for_status().json()["choices"][0]["text"]
            except (httpx.HTTPError, LookupError, ValueError) as error:
                _say(f"failed: {error!r}")
                return "failed"
            return "answered" if text == question.answer else "different"

        for outcome in pool.map(ask, source.choices(answers, k=num_requests)):
            counts[outcome] += 1
    return counts


def _body(model: str, prompt: str, num_tokens: int) -> dict[str, object]:
    return {"model": model, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True}


def _processes(kind: str, folder: Path) -> list[tuple[str, int]]:
    """Find the processes of a server and of a sidecar by the folder they keep their caches in."""
    names = {"VLLM::EngineCore": "engine", "VLLM::Worker": "worker", "vllm.entrypoints.cli.main": "api"}
    names |= {"service.processes.analyzer": "analyzer", "taxbreak_vllm.cli": "sidecar"}
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit() or f"HF_HOME={folder}/".encode() not in (entry / "environ").read_bytes():
                continue
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            if "demo.processes" in command:
                continue  # the guard
            for word, name in names.items():
                if word in command:
                    found.append((f"{kind} {name}", int(entry.name)))
                    break
    return found


def _rss_mb(pid: int) -> float:
    """Return the resident memory of a process; NaN once it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return math.nan


def _slope(seconds: Sequence[float], values: Sequence[float]) -> Slope:
    """Fit Theil-Sen to means of blocks, which are nearly independent; Sen's interval from Kendall's variance."""
    first = int(len(seconds) * _WARM)
    seconds, values = seconds[first:], values[first:]
    size = max(1, len(values) // _NUM_BLOCKS)
    blocks = range(0, len(values) - size + 1, size)
    points = [(mean(seconds[i : i + size]), mean(values[i : i + size])) for i in blocks]
    slopes = sorted(
        (value - earlier_value) / (second - earlier)
        for i, (earlier, earlier_value) in enumerate(points)
        for second, value in points[i + 1 :]
    )
    n = len(points)
    if n < 4:
        raise SystemExit("too few samples of memory: ask for more requests")
    half_width = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / 2
    low = slopes[max(0, math.floor(len(slopes) / 2 - half_width))]
    high = slopes[min(len(slopes) - 1, math.ceil(len(slopes) / 2 + half_width))]
    return Slope(median(slopes) * 3600, low * 3600, high * 3600, median(values), (seconds[-1] - seconds[0]) / 3600)


def _metrics(sidecar: RunningServer) -> dict[str, float]:
    """Return our own counters at the end, summed over their other labels."""
    text = httpx.get(f"{sidecar.url}/metrics", timeout=60.0).raise_for_status().text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("taxbreak_")
            if name in ("steps_total", "sampled_steps_total", "capture_overhead_ratio", "spool_bytes"):
                found[name] = found.get(name, 0) + sample.value
            elif name == "samples_dropped_total":
                found[f"{name} {sample.labels['reason']}"] = sample.value
    return found


def _faults(
    outcome: dict[str, dict[str, object]], slopes: dict[str, Slope], watch: Watch, metrics: dict[str, float]
) -> list[str]:
    found = []
    for name, counts in outcome.items():
        if counts["answered"] != counts["asked"]:
            found.append(f"{name}: {counts['failed']} requests failed, {counts['different']} answers differ")
    for role in ("api", "engine", "worker", "sidecar", "analyzer"):
        slope, own = slopes.get(f"on {role}"), slopes.get(f"absent {role}")
        if slope is None:
            found.append(f"{role}: not found, or gone")
        elif not slope.is_flat and (own is None or slope.low > max(0.0, own.high)):
            found.append(f"{role}: memory grows by {slope.mb_per_hour:.1f} MB/h [{slope.low:.1f}, {slope.high:.1f}]")
    if watch.spool_bytes > SPOOL_BYTES or watch.spool_captures > SPOOL_CAPTURES:
        found.append(f"the spool held {watch.spool_bytes} bytes, {watch.spool_captures} captures")
    if not metrics.get("sampled_steps_total"):
        found.append("nothing was sampled")
    return found


def _report(result: dict, slopes: dict[str, Slope]) -> None:
    out = Console(width=120)
    table = Table(title="Resident memory in the second half", title_justify="left")
    for title in ("process", "median MB", "MB per hour", "95 % interval", "flat"):
        table.add_column(title, justify="left" if title == "process" else "right")
    for name, slope in sorted(slopes.items()):
        interval = f"{slope.low:+.2f} … {slope.high:+.2f}"
        table.add_row(name, f"{slope.median_mb:.1f}", f"{slope.mb_per_hour:+.2f}", interval, str(slope.is_flat))
    out.print(table)
    for key in ("requests", "spool", "metrics"):
        out.print(f"{key}: {result[key]}", highlight=False)
    for fault in result["faults"] or ["no fault"]:
        out.print(fault, highlight=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=30_000, help="to each of the two servers")
    parser.add_argument("--round", type=int, default=250, help="requests to one server before the other's turn")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--sample-every", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
