"""vLLM's scheduler in virtual time beside real servers: are steps batched alike, and does what is predicted come?

    python benchmarks/workload.py [--steps 10000] [--only NAME] [--pairs] [--seconds 60] [--rounds 3] [--json FILE]

Identity: for each setting a server of the tiny model gets varied traffic (tests/rig/varied_client.py) until it has
taken so many steps, and `taxbreak workload check` schedules them again. Pairs (`--pairs`): one server is recorded under
an open load; for each pair another server, or the same under another load, is measured `--rounds` times, and compared
with `taxbreak workload predict` of the recording. Figures of both sides are the API server's. Prediction needs a quiet
machine.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import describe_machine

from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, RunningServer, start_vllm
from taxbreak_vllm.traffic.log import read_log, sources
from taxbreak_vllm.traffic.rows import Ended, Row, Scheduled
from taxbreak_vllm.workload.figures import figures, latencies, measured_rows
from taxbreak_vllm.workload.frontend import request_rows
from taxbreak_vllm.workload.recording import read_apis

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from rig.open_client import ask_openly
from rig.varied_client import ask_all

IDENTITY = {
    "as served": ONE_PROCESS,
    "prefix cache": (*ONE_PROCESS, "--block-size", "32"),
    "preemption": (*ONE_PROCESS, "--block-size", "32", "--num-gpu-blocks-override", "30"),
    "chunked prefill": (*ONE_PROCESS, "--max-num-batched-tokens", "64", "--block-size", "32"),
    "two API servers": (*WORKER_EXTENSION, "--api-server-count", "2"),
}
BASE = (*ONE_PROCESS, "--max-num-batched-tokens", "512")
RATE = 6.0  # requests a second of the recorded load


@dataclass(frozen=True)
class Pair:
    """What is asked: options of `predict`, and of the server and the load that it is compared with."""

    name: str
    asked: tuple[str, ...]
    flags: tuple[str, ...] = ()
    rate: float = 1.0
    shape: float = 1.0


PAIRS = (
    Pair("as recorded", ()),
    Pair("half the rate", ("--load", "0.5x"), rate=0.5),
    Pair("1.5 times the rate", ("--load", "1.5x"), rate=1.5),
    Pair("2 times the rate", ("--load", "2x"), rate=2.0),
    Pair("3 times the rate", ("--load", "3x"), rate=3.0),
    Pair("bursts", ("--arrivals", "gamma:0.3"), shape=0.3),
    Pair("bursts at 2 times the rate", ("--load", "2x", "--arrivals", "gamma:0.3"), rate=2.0, shape=0.3),
    Pair("max_num_seqs 2", ("--set", "max_num_seqs=2"), ("--max-num-seqs", "2")),
    Pair("max_num_seqs 4", ("--set", "max_num_seqs=4"), ("--max-num-seqs", "4")),
    Pair("max_num_seqs 4 at 2 times the rate", ("--set", "max_num_seqs=4", "--load", "2x"),
         ("--max-num-seqs", "4"), 2.0),
    Pair("half the budget", ("--set", "max_num_batched_tokens=256"), ("--max-num-batched-tokens", "256")),
    Pair("half the budget at 2 times the rate", ("--set", "max_num_batched_tokens=256", "--load", "2x"),
         ("--max-num-batched-tokens", "256"), 2.0),
)  # fmt: skip


def main() -> int:
    """Run what was asked; 1 where a step was batched otherwise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="taxbreak-workload-") as folder:
        if options.pairs:
            found = _pairs(Path(folder), options)
        else:
            found = [_identity(Path(folder), name, options.steps) for name in IDENTITY if options.only in name]
    if options.json:
        options.json.write_text(json.dumps({"machine": describe_machine("vllm"), "found": found}, indent=1))
    return int(any(each.get("is_identical") is False for each in found))


def _identity(folder: Path, name: str, num_steps: int) -> dict[str, object]:
    with _serving(folder, name, IDENTITY[name]) as (server, spool):
        ids: list[str] = []
        while _count(spool, Scheduled) < num_steps:
            ids += ask_all(server.url, "tiny-llama", num=400, seed=len(ids))
            _wait(server, spool, len(ids))
        (engine,) = _taxbreak("check", spool)["engines"]
    engine["is_identical"] = engine["num_steps"] == engine["num_same"] >= num_steps
    per_s = engine["num_steps"] / (engine["elapsed_ns"] / 1e9)
    print(
        f"{name}: {engine['num_same']:,} of {engine['num_steps']:,} steps alike, {engine['num_requests']:,} requests, "
        f"{engine['num_hit_tokens']:,} tokens found in the cache, {engine['num_preemptions']:,} preemptions, "
        f"{per_s:,.0f} steps a second of CPU",
        flush=True,
    )
    return {"setting": name} | engine


def _pairs(folder: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    with _serving(folder, "recorded", BASE) as (server, recorded):
        _load(server, recorded, Pair("recorded", ()), options.seconds, seed=1)
        found = []
        for pair in (pair for pair in PAIRS if options.only in pair.name):
            answer = _taxbreak("predict", recorded, *pair.asked)
            measured = [_measured(folder, pair, round_, options.seconds) for round_ in range(options.rounds)]
            found.append({"pair": asdict(pair), "answer": answer, "measured": measured})
            _say(pair, answer, measured)
    return found


def _measured(folder: Path, pair: Pair, round_: int, seconds: float) -> dict[str, float]:
    with _serving(folder, f"{pair.name}-{round_}", (*BASE, *pair.flags)) as (server, spool):
        _load(server, spool, pair, seconds, seed=100 + round_)
        return figures(latencies(measured_rows(request_rows(read_apis(spool)))))


def _load(server: RunningServer, spool: Path, pair: Pair, seconds: float, *, seed: int) -> None:
    ids = ask_all(server.url, "tiny-llama", num=16, concurrency=2, seed=9)  # what is slow the first time
    asked = ask_openly(server.url, "tiny-llama", rate=RATE * pair.rate, seconds=seconds, shape=pair.shape, seed=seed)
    num = len(ids) + asyncio.run(asked)
    _wait(server, spool, num)


def _wait(server: RunningServer, spool: Path, num: int) -> None:
    server.process.wait_until(lambda: _count(spool, Ended) >= num, "keeping requests", timeout_s=120)


def _say(pair: Pair, answer: dict, measured: Sequence[dict[str, float]]) -> None:
    if answer["predicted"] is None:
        print(f"{pair.name}: no answer: {answer['reason']}", flush=True)
        return
    told = answer["predicted"]
    flat = {"tokens_per_s": told["tokens_per_s"]}
    flat |= {f"{n}_{what}": v for n in ("ttft", "tpot", "e2e") for what, v in (told[f"{n}_s"] or {}).items()}
    words = []
    for name in ("tokens_per_s", "ttft_mean", "ttft_p99", "tpot_mean", "e2e_mean"):
        values = [each[name] for each in measured]
        mean = sum(values) / len(values)
        low, high = answer["band"][name]
        within = sum(low <= value <= high for value in values)
        spread = (max(values) - min(values)) / mean
        words.append(
            f"{name} {flat[name] / mean - 1:+.1%} (runs ±{spread / 2:.1%}, {within}/{len(values)} in the band)"
        )
    print(f"{pair.name}: {', '.join(words)}", flush=True)


class _serving:
    """A server of the tiny model and its spool, for as long as it is needed."""

    def __init__(self, folder: Path, name: str, flags: Sequence[str]) -> None:
        self._folder = folder / name.replace(" ", "-")
        self._folder.mkdir()
        self._flags = flags

    def __enter__(self) -> tuple[RunningServer, Path]:
        self._processes = Processes(self._folder).__enter__()
        spool = self._folder / "spool"
        env = {"VLLM_PLUGINS": "taxbreak", "TAXBREAK_SPOOL": str(spool), "TAXBREAK_ENABLED": "false"}
        env |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        model = write_tiny_llama(self._folder / "tiny-llama")
        return start_vllm(self._processes, model, flags=self._flags, env=env).wait(), spool

    def __exit__(self, *about: object) -> None:
        self._processes.__exit__(*about)


def _count(spool: Path, kind: type[Row]) -> int:
    folders = list(spool.glob("*/traffic"))
    rows = (row for folder in folders for source in sources(folder) for row in read_log(folder, source)[1])
    return sum(isinstance(row, kind) for row in rows)


def _taxbreak(command: str, spool: Path, *options: str) -> dict:
    words = [sys.executable, "-m", "taxbreak_vllm.cli", "workload", command, str(spool), *options, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
