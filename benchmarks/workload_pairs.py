"""What `taxbreak workload predict` says of other traffic and settings beside what real servers then make of them.

    python benchmarks/workload_pairs.py [--device timed] [--seconds 12] [--rounds 3] [--folder DIR] [--only NAME]

One server is recorded under a load that goes up and down. For each pair the same server under another load, or another
server, serves a plan of requests `--rounds` times, the second and later on servers started anew, as equal starts are
not equally quick; the plan is given to `predict` as a file, with what is other about the server. Figures of both sides
are the API server's. Devices: `timed`, a clock that takes what a step's work tells (tests/rig/timed.py), so that no
device shares the cores; `ahead`, the same scheduled ahead; `cpu`, vLLM's CPU build, whose engine has a core for itself:
where it shares two with whoever asks, equal steps differ by half from one quarter of a minute to the next. With
`--folder` what was measured is kept there, and a run that was broken off goes on. It needs a quiet machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
from engine_core import part_cores
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import ONE_PROCESS, RunningServer, start_vllm
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.rows import Ended
from taxbreak_vllm.workload.figures import figures, latencies, measured_rows
from taxbreak_vllm.workload.loads import read_load
from taxbreak_vllm.workload.recording import read_engines
from taxbreak_vllm.workload.requests import gamma_arrivals

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from rig.knobs import Knobs
from rig.open_client import Asked, draw, serve
from rig.plugins import python_path
from rig.varied_client import ask_all

RESULTS = Path(__file__).parent / "results" / "workload_pairs.json"
NUM_CYCLES = 4  # of the recorded load, so that both its halves have seen all of it
LEVELS = (0.4, 1.0, 1.6, 3.4)  # times the rate, each for a quarter of a cycle
MODEL = "tiny-llama"
WARM_UP = 16  # requests: what is slow the first time
BASE = (*ONE_PROCESS, "--max-num-seqs", "32", "--max-num-batched-tokens", "512")
TIMED = ("--worker-cls", "rig.timed.Worker")
DELAY = "1ms"
AT_MOST = {"tokens_per_s": 0.02, "tpot_mean": 0.05, "e2e_mean": 0.05, "ttft_mean": 0.10}
P99_AT_MOST = 0.15
SATURATED_AT_MOST = 0.05  # tokens a second, where more comes than is served
DIRECTIONS = ("tokens_per_s", "ttft_mean", "tpot_mean", "e2e_mean")
NOTICED = 0.05  # a change below it has no direction


@dataclass(frozen=True)
class Device:
    """What steps run on: flags and plugins of its servers, and how many requests a second are its usual load.

    Where the device shares the cores, its engines get one, and what asks them the others.
    """

    rate: float
    flags: tuple[str, ...] = ()
    plugins: str = "taxbreak,slow_places"
    shares_cores: bool = False


DEVICES = {
    "timed": Device(8.0, (*TIMED, "--no-async-scheduling"), "taxbreak,simulated"),
    "ahead": Device(8.0, (*TIMED, "--async-scheduling"), "taxbreak,simulated"),
    "cpu": Device(5.0, shares_cores=True),
}


@dataclass(frozen=True)
class Load:
    """Requests: how many come times the usual, None for up and down as recorded; the shape of gaps; lengths."""

    rate: float | None = None
    shape: float = 1.0
    prompts: tuple[int, int] = (8, 240)
    outputs: tuple[int, int] = (4, 60)


@dataclass(frozen=True)
class Pair:
    """What is asked: options of `predict` but for the load, and the server that it is compared with.

    `beside` is the pair that differs in one thing alone. A `delayed` recording is of a server that takes DELAY longer
    for each step.
    """

    name: str
    load: Load = field(default_factory=Load)
    asked: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    num_servers: int = 1
    beside: str | None = None
    of_delayed: bool = False
    is_delayed: bool = False


PAIRS = (
    Pair("as recorded"),
    Pair("half the rate", Load(0.5)),
    Pair("the usual rate", Load(1.0), beside="half the rate"),
    Pair("2 times the rate", Load(2.0), beside="the usual rate"),
    Pair("4 times the rate", Load(4.0), beside="2 times the rate"),
    Pair("bursts", Load(1.0, shape=0.3), ("--arrivals", "gamma:0.3"), beside="the usual rate"),
    Pair("bursts at 2 times the rate", Load(2.0, shape=0.3), ("--arrivals", "gamma:0.3"), beside="2 times the rate"),
    Pair("long prompts, short answers", Load(1.5, prompts=(200, 440), outputs=(2, 20)), beside="the usual rate"),
    Pair("max_num_seqs 2", Load(0.5), ("--set", "max_num_seqs=2"), ("--max-num-seqs", "2"), beside="half the rate"),
    Pair("max_num_seqs 4", Load(1.0), ("--set", "max_num_seqs=4"), ("--max-num-seqs", "4"), beside="the usual rate"),
    Pair("max_num_seqs 8 at 2 times the rate", Load(2.0), ("--set", "max_num_seqs=8"), ("--max-num-seqs", "8"),
         beside="2 times the rate"),
    Pair("half the budget at 2 times the rate", Load(2.0), ("--set", "max_num_batched_tokens=256"),
         ("--max-num-batched-tokens", "256"), beside="2 times the rate"),
    Pair("2 replicas at 4 times the rate", Load(4.0), ("--replicas", "2"), num_servers=2, beside="4 times the rate"),
    Pair("with the delay", Load(1.0), of_delayed=True, is_delayed=True),
    Pair("without the delay", Load(1.0), (f"--host=-{DELAY}",), beside="with the delay", of_delayed=True),
)  # fmt: skip


def main() -> None:
    """Measure, ask, print, write."""
    options = _options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    load_before, started_s = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wl-") as temporary:
        folder = (options.folder or Path(temporary)).absolute() / options.device
        found = Bench(options.device, folder, options.seconds, options.rounds).run(options.only)
    summed = _sum_up(found)
    _print(found, summed)
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.is_file() else {}
        known[options.device] = {
            "machine": describe_machine("vllm", "taxbreak-vllm")
            | {"load_1min": {"before": load_before, "after": os.getloadavg()[0]}},
            "took_s": round(time.monotonic() - started_s),
            "seconds": options.seconds,
            "rounds": options.rounds,
            **summed,
            "pairs": found,
        }
        options.json.write_text(json.dumps(known, indent=1) + "\n")


class Bench:
    """One device's servers: what they are asked and what they then took, kept in a folder."""

    def __init__(self, device: str, folder: Path, seconds: float, num_rounds: int) -> None:
        self._device = DEVICES[device]
        self._folder = folder
        self._seconds = seconds
        self._num_rounds = num_rounds
        self._cores = sorted(os.sched_getaffinity(0))
        folder.mkdir(parents=True, exist_ok=True)
        self._model = write_tiny_llama(folder / MODEL)

    def run(self, only: str) -> list[dict]:
        """Return what was measured and predicted of each pair."""
        pairs = [pair for pair in PAIRS if only in pair.name]
        for is_delayed in {pair.of_delayed for pair in pairs}:
            self._record(is_delayed, [pair for pair in pairs if self._is_of_recorded(pair, is_delayed)])
        alike: dict[tuple, list[Pair]] = {}
        for pair in pairs:
            alike.setdefault((pair.flags, pair.num_servers, pair.is_delayed), []).append(pair)
        for round_ in range(self._num_rounds):
            for each in alike.values():
                self._measure(each, round_)
        return [self._compared(pair) for pair in pairs]

    def _is_of_recorded(self, pair: Pair, is_delayed: bool) -> bool:
        return not pair.flags and pair.num_servers == 1 and pair.is_delayed == is_delayed

    def _record(self, is_delayed: bool, pairs: Sequence[Pair]) -> None:
        """Record a server, and measure on it, once, what needs no other."""
        kept = self._recording(is_delayed)
        if kept.is_dir():
            return
        with ExitStack() as stack:
            servers = self._start(stack, "delayed" if is_delayed else "recorded", (), 1, is_delayed)
            seconds = NUM_CYCLES * self._seconds
            plan = self._draw(Load(), seconds, seed=1)
            self._serve(servers, plan, seed="recorded")
            (engine, spool), num = servers[0], WARM_UP + len(self._warm_up()) + len(plan)
            engine.process.wait_until(lambda: _num_ended(spool) >= num, "done with keeping", timeout_s=60)
            part = kept.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(servers[0][1], part)
            part.rename(kept)
            self._round(servers, pairs, 0)

    def _measure(self, pairs: Sequence[Pair], round_: int) -> None:
        """Measure pairs of one kind of server, started anew, of which this round is not measured yet."""
        left = [pair for pair in pairs if not self._kept(pair, round_).is_file()]
        if not left:
            return
        first = left[0]
        with ExitStack() as stack:
            servers = self._start(stack, _slug(first.name), first.flags, first.num_servers, first.is_delayed)
            self._round(servers, left, round_)

    def _round(self, servers: Sequence[tuple[RunningServer, Path]], pairs: Sequence[Pair], round_: int) -> None:
        for pair in pairs:
            found = self._serve(servers, self._plan(pair), seed=f"{pair.name} {round_}")
            self._kept(pair, round_).write_text(json.dumps(found, indent=1))
            _say(f"{pair.name}, round {round_ + 1}: {found['tokens_per_s']:.0f} tok/s")

    def _start(
        self, stack: ExitStack, name: str, flags: Sequence[str], num: int, is_delayed: bool
    ) -> list[tuple[RunningServer, Path]]:
        started = []
        os.sched_setaffinity(0, self._cores)
        for place in range(num):
            folder = self._folder / f"{name}-{place}"
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was broken off
            folder.mkdir()
            knobs = Knobs(folder / "knobs")
            knobs.turn(schedule=1_000_000 if is_delayed else 0)
            env = {
                "PYTHONPATH": python_path(folder / "plugins"),
                "SIMULATED": str(folder),
                "SLOW_PLACES": str(folder / "knobs"),
                "VLLM_PLUGINS": self._device.plugins,
                "TAXBREAK_SPOOL": str(folder / "spool"),
                "TAXBREAK_ENABLED": "false",
                "OMP_NUM_THREADS": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
            processes = stack.enter_context(Processes(folder))
            all_flags = (*BASE, *self._device.flags, *flags)
            started.append((start_vllm(processes, self._model, flags=all_flags, env=env), folder / "spool"))
        for server, _ in started:
            server.wait()
            ask_all(server.url, MODEL, num=WARM_UP, concurrency=2, seed=9)
        if self._device.shares_cores:
            part_cores(self._cores)
            self._serve(started, self._warm_up(), seed="warm")
        return started

    def _warm_up(self) -> list[Asked]:
        """Return requests for the CPU build's first thousand steps, which are a tenth slower."""
        return self._draw(Load(1.0), self._seconds, seed=9) if self._device.shares_cores else []

    def _serve(
        self, servers: Sequence[tuple[RunningServer, Path]], plan: Sequence[Asked], *, seed: str
    ) -> dict[str, float]:
        """Ask what was planned, and return what the API servers measured of it.

        Replicas get their share one after the other, each from its beginning on, as they would not share these cores.
        """
        num = len(servers)
        parts = [serve([each], MODEL, plan[place::num], seed=f"{seed} {place}") for place, each in enumerate(servers)]
        for part, first in zip(parts, plan, strict=False):
            instants = part[:, : Column.END + 1]
            instants[instants > 0] += int(first.at_s * 1e9) + 1 - part[:, Column.ARRIVED].min()
        return figures(latencies(measured_rows(np.concatenate(parts))))

    def _draw(self, load: Load, seconds: float, *, seed: int) -> list[Asked]:
        usual, cycle_s = self._device.rate, self._seconds
        rate = usual * load.rate if load.rate else lambda at_s: usual * LEVELS[int(4 * at_s / cycle_s) % 4]
        return draw(seconds=seconds, rate=rate, seed=seed, prompts=load.prompts, outputs=load.outputs)

    def _load_file(self, pair: Pair) -> Path:
        """Write a pair's requests, as `vllm bench serve` would; the shape of their gaps is an option of its own."""
        path = self._folder / f"{_slug(pair.name)}.load.json"
        if not path.is_file():
            plan = self._draw(pair.load, self._seconds, seed=2)
            at_s, prompts, outputs = zip(*plan, strict=True)
            path.write_text(json.dumps({"input_lens": prompts, "output_lens": outputs, "start_times": at_s}))
        return path

    def _plan(self, pair: Pair) -> list[Asked]:
        """Return the requests of that file with those gaps."""
        requests = read_load(self._load_file(pair), hash_block_size=16, max_model_len=512)
        if pair.load.shape != 1:
            requests = gamma_arrivals(requests, pair.load.shape)
        return [Asked(each.at_ns / 1e9, each.num_prompt_tokens, each.num_outputs) for each in requests]

    def _recording(self, is_delayed: bool) -> Path:
        return self._folder / ("recording-delayed" if is_delayed else "recording")

    def _kept(self, pair: Pair, round_: int) -> Path:
        return self._folder / f"{_slug(pair.name)}.measured-{round_}.json"

    def _compared(self, pair: Pair) -> dict:
        _say(f"{pair.name}: asking")
        words = [str(self._recording(pair.of_delayed)), "--load", str(self._load_file(pair)), *pair.asked, "--json"]
        command = [sys.executable, "-m", "taxbreak_vllm.cli", "workload", "predict", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answer = json.loads(done.stdout) if done.stdout else {"predicted": None, "reason": done.stderr.strip()}
        measured = [json.loads(self._kept(pair, round_).read_text()) for round_ in range(self._num_rounds)]
        offered = self._plan(pair)
        per_s = sum(request.num_outputs for request in offered) / offered[-1].at_s
        found = {"pair": asdict(pair), "offered_tokens_per_s": per_s, "measured": measured, "reason": answer["reason"]}
        if answer["predicted"] is None:
            return found
        return found | _judged(_flat(answer["predicted"]), answer["band"], measured, per_s) | {"answer": answer}


def _flat(told: Mapping) -> dict[str, float]:
    times = {f"{n}_{what}": v for n in ("ttft", "tpot", "e2e") for what, v in (told[f"{n}_s"] or {}).items()}
    return {"tokens_per_s": told["tokens_per_s"]} | times


def _judged(
    told: Mapping[str, float],
    band: Mapping[str, Sequence[float]],
    measured: Sequence[Mapping[str, float]],
    offered_per_s: float,
) -> dict:
    """Hold a prediction against the runs: by how much each figure is off, whether that is too much, and its band."""
    errors, missed, inside, spreads = {}, [], {}, {}
    is_saturated = mean(run["tokens_per_s"] for run in measured) < 0.8 * offered_per_s
    for name, value in told.items():
        runs = [run[name] for run in measured]
        errors[name] = value / mean(runs) - 1
        spreads[name] = (max(runs) - min(runs)) / mean(runs) / 2
        low, high = band[name]
        inside[name] = [low <= run <= high for run in runs]
        at_most = AT_MOST.get(name, P99_AT_MOST if name.endswith("p99") else None)
        if name == "tokens_per_s" and is_saturated:
            at_most = SATURATED_AT_MOST
        if at_most is not None and abs(errors[name]) > at_most and not min(runs) <= value <= max(runs):
            missed.append(name)
    return {"is_saturated": is_saturated, "errors": errors, "spreads": spreads, "inside": inside, "missed": missed}


def _sum_up(found: Sequence[dict]) -> dict[str, object]:
    """Say how many figures were met, which share of runs the bands hold, and which directions were wrong."""
    answered = {each["pair"]["name"]: each for each in found if "errors" in each}
    inside = [is_in for each in answered.values() for of in each["inside"].values() for is_in in of]
    limits = sum(name in AT_MOST or name.endswith("p99") for each in answered.values() for name in each["errors"])
    wrong, num_directions = [], 0
    for name, each in answered.items():
        base = answered.get(each["pair"]["beside"])
        for figure in DIRECTIONS if base else ():
            now, before = (mean(run[figure] for run in of["measured"]) for of in (each, base))
            change = now / before - 1
            if abs(change) <= max(NOTICED, each["spreads"][figure] + base["spreads"][figure]):
                continue
            num_directions += 1
            told, told_before = (_flat(of["answer"]["predicted"])[figure] for of in (each, base))
            if (told / told_before - 1) * change <= 0:
                wrong.append(f"{name}: {figure}")
    return {
        "num_pairs": len(found),
        "num_answered": len(answered),
        "num_figures": limits,
        "num_met": limits - sum(len(each["missed"]) for each in answered.values()),
        "missed": [f"{name}: {figure}" for name, each in answered.items() for figure in each["missed"]],
        "coverage": mean(inside) if inside else None,
        "num_directions": num_directions,
        "wrong_directions": wrong,
    }


def _print(found: Sequence[dict], summed: Mapping) -> None:
    console = Console(width=170)
    shown = ("tokens_per_s", "tpot_mean", "e2e_mean", "ttft_mean", "tpot_p99", "e2e_p99", "ttft_p99")
    table = Table("pair", *(name.replace("_", " ") for name in shown), "in the band", pad_edge=False)
    for each in found:
        name = each["pair"]["name"] + (" (saturated)" if each.get("is_saturated") else "")
        if "errors" not in each:
            table.add_row(name, f"no answer: {each['reason']}")
            continue
        inside = [is_in for of in each["inside"].values() for is_in in of]
        cells = [
            f"{each['errors'][of]:+.1%} ±{each['spreads'][of]:.1%}" + (" !" if of in each["missed"] else "")
            for of in shown
        ]
        table.add_row(name, *cells, f"{sum(inside)}/{len(inside)}")
    console.print(table)
    console.print(
        f"{summed['num_met']} of {summed['num_figures']} figures within what is asked for or within the runs; bands "
        f"hold {summed['coverage'] or 0:.0%}; {len(summed['wrong_directions'])} of {summed['num_directions']} "
        f"directions wrong. Missed (!): {', '.join(summed['missed']) or 'none'}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="timed")
    parser.add_argument("--seconds", type=float, default=12, help="that requests come in each run (12)")
    parser.add_argument("--rounds", type=int, default=3, help="of each pair (3)")
    parser.add_argument("--only", default="", help="pairs with this in their name; nothing is written")
    parser.add_argument("--folder", type=Path, help="where what is measured is kept, or is from an earlier run")
    parser.add_argument("--json", type=Path, help=f"where to write ({RESULTS.name} of the results)")
    options = parser.parse_args()
    options.json = options.json or (None if options.only else RESULTS)
    return options


def _num_ended(spool: Path) -> int:
    return sum(isinstance(row, Ended) for engine in read_engines(spool) for row in engine.rows)


def _slug(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
