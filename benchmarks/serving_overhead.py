"""What the plugin costs a server, as a client of it sees: vLLM's own `vllm bench serve` against six servers in turn.

    python benchmarks/serving_overhead.py [--pairs N] [--round-s S] [--sidecar] [--strict]

The servers differ in our part alone: `absent` (its entry points are not even loaded), `unnamed` (installed, not asked
for: the same code on a step's path as `absent`, so the two tell how much two alike servers differ), `off`, `on`,
`whole` (the plugin named too: requests are timed, captures analyzed beside the server) and `on, 10×` its rate and its
budget. All stay up, idle ones cost nothing, and each pair measures every server, in an order of its own, within a
minute: what else the machine does meets all of them. A change is the ratio to `absent` in the same pair.
Prints tables and writes `benchmarks/results/serving_overhead.json`.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from machine import describe_machine
from rich.console import Console
from rich.table import Table

from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, RunningServer, start_sidecar, start_vllm
from taxbreak_vllm.settings import Settings

RESULTS = Path(__file__).resolve().parent / "results" / "serving_overhead.json"
BASE, TWIN, ON, WHOLE = "absent", "unnamed", "on", "whole"
TIMES = 10
# Threads and processes that spin for one another take each other's cores, and throughput halves or not by chance. And a
# client that pauses between two rounds must not find its connections closed.
CALM = {"VLLM_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"}
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How requests come: requests per second (None: all at once), and the burstiness of `vllm bench serve`."""

    rate: float | None
    burstiness: float = 1.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of `vllm bench serve`, and whether more of it is better."""

    key: str
    title: str
    more_is_better: bool = False


METRICS = (
    Metric("output_throughput", "tokens/s", more_is_better=True),
    Metric("median_ttft_ms", "TTFT p50 ms"),
    Metric("p99_ttft_ms", "TTFT p99 ms"),
    Metric("median_itl_ms", "ITL p50 ms"),
    Metric("p99_itl_ms", "ITL p99 ms"),
)

# kind of arrivals -> server -> metric -> one value per pair
Values = dict[str, dict[str, dict[str, list[float]]]]


def main() -> None:
    """Measure, print, write."""
    options = _options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    load_before = os.getloadavg()[0]
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Processes(Path(folder)) as processes:
        model = write_tiny_llama(Path(folder) / "tiny-llama")
        servers = _start(processes, model, sample_every=options.sample_every, with_sidecar=options.sidecar)
        client = Client(model, Path(folder))
        idle = _idle_cpu(processes)
        arrivals = _arrivals(client, servers[BASE], options)
        values = _measure(client, servers, arrivals, options)
        states = _what_was_recorded(Path(folder))
    changes = {kind: _changes(by_server) for kind, by_server in values.items()}
    result = {
        "machine": describe_machine("vllm", "torch", "taxbreak-vllm")
        | {"load_1min": {"before": load_before, "after": os.getloadavg()[0]}},
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "sample_every": {ON: options.sample_every, f"{ON}, {TIMES}×": max(2, options.sample_every // TIMES)},
        "arrivals": {kind: asdict(how) for kind, how in arrivals.items()},
        "idle_servers_cpu_ratio": idle,
        "recorded": states,
        "took_s": round(time.monotonic() - started_s),
        "change": changes,
        "values": values,
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    missed = _report(changes, values, idle)
    sys.exit(1 if missed and options.strict else 0)


class Client:
    """`vllm bench serve` in this process: its parser and its main, without 20 s of imports a round."""

    def __init__(self, model: Path, folder: Path) -> None:
        from vllm.benchmarks import serve
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self._main = serve.main_async
        self._parser = FlexibleArgumentParser()
        serve.add_cli_args(self._parser)
        self._model = model
        self._folder = folder

    def run(self, server: RunningServer, how: Arrivals, *, num_prompts: int, seed: int) -> dict[str, float]:
        """Run one round and return its figures; every request of it must have been answered."""
        words = ["--base-url", server.url, "--model", str(self._model), "--served-model-name", self._model.name]
        words += ["--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "32"]
        words += ["--num-prompts", str(num_prompts), "--seed", str(seed), "--temperature", "0", "--disable-tqdm"]
        words += ["--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,99"]
        words += ["--burstiness", str(how.burstiness), "--max-concurrency", "32"]
        if how.rate is not None:
            words += ["--request-rate", str(how.rate)]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            result = asyncio.run(self._main(self._parser.parse_args(words)))
        if result["completed"] != num_prompts:
            raise SystemExit(
                f"{server.url} answered {result['completed']} of {num_prompts} requests\n{said.getvalue()}"
            )
        return {metric.key: float(result[metric.key]) for metric in METRICS} | {"duration": float(result["duration"])}


def _start(processes: Processes, model: Path, *, sample_every: int, with_sidecar: bool) -> dict[str, RunningServer]:
    def settings(name: str, every: int, **others: str) -> dict[str, str]:
        return {"TAXBREAK_SPOOL": str(processes.folder / f"spool-{name}"), "TAXBREAK_SAMPLE_EVERY": str(every)} | others

    often = max(2, sample_every // TIMES)
    budget = TIMES * Settings.model_fields["overhead_budget_ratio"].default
    kinds: dict[str, tuple[Sequence[str], dict[str, str]]] = {
        BASE: ((), {"VLLM_PLUGINS": ""}),
        TWIN: ((), {}),
        "off": (WORKER_EXTENSION, settings("off", sample_every, TAXBREAK_ENABLED="false")),
        ON: (WORKER_EXTENSION, settings("on", sample_every)),
        WHOLE: (WORKER_EXTENSION, settings("whole", sample_every, VLLM_PLUGINS="taxbreak")),
        f"{ON}, {TIMES}×": (WORKER_EXTENSION, settings("often", often, TAXBREAK_OVERHEAD_BUDGET_RATIO=str(budget))),
    }
    servers = {}
    _say(f"starting {len(kinds)} servers")
    for number, (name, (flags, env)) in enumerate(kinds.items()):
        servers[name] = start_vllm(
            processes, model, flags=(*flags, *ONE_PROCESS), env=env | CALM, name=f"vllm-{number}"
        )
        if with_sidecar and name.startswith(ON):
            start_sidecar(processes, Path(env["TAXBREAK_SPOOL"]), name=f"sidecar-{number}").wait()
    return {name: server.wait() for name, server in servers.items()}


def _arrivals(client: Client, server: RunningServer, options: argparse.Namespace) -> dict[str, Arrivals]:
    """Measure what the server can do at most, and let requests come at a share of that."""
    client.run(server, Arrivals(None), num_prompts=50, seed=1)  # warm
    num_prompts = 200
    rate = num_prompts / client.run(server, Arrivals(None), num_prompts=num_prompts, seed=2)["duration"]
    _say(f"at most {rate:.1f} requests/s; Poisson and bursts come at {options.load:.0%} of that")
    return {
        "saturated": Arrivals(None),
        "poisson": Arrivals(round(rate * options.load, 2)),
        "bursts": Arrivals(round(rate * options.load, 2), burstiness=options.burstiness),
    }


def _measure(
    client: Client, servers: Mapping[str, RunningServer], arrivals: Mapping[str, Arrivals], options: argparse.Namespace
) -> Values:
    """Measure every server in every pair; the first round of each server is thrown away."""
    num_prompts = {kind: _num_prompts(how, arrivals, options) for kind, how in arrivals.items()}
    for server in servers.values():
        client.run(server, arrivals["saturated"], num_prompts=num_prompts["saturated"], seed=3)
    order = random.Random(0)
    values: Values = {kind: {name: {metric.key: [] for metric in METRICS} for name in servers} for kind in arrivals}
    for pair in range(options.pairs):
        for kind, how in arrivals.items():
            names = order.sample(list(servers), len(servers))
            for name in names:
                seed = 100 * pair + len(kind)  # the same prompts at the same times for all
                figures = client.run(servers[name], how, num_prompts=num_prompts[kind], seed=seed)
                for metric in METRICS:
                    values[kind][name][metric.key].append(figures[metric.key])
        _say(f"pair {pair + 1} of {options.pairs}")
    return values


def _num_prompts(how: Arrivals, arrivals: Mapping[str, Arrivals], options: argparse.Namespace) -> int:
    rate = how.rate or (arrivals["poisson"].rate or 0) / options.load
    return max(20, round(rate * options.round_s))


def _changes(by_server: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Compare each server with the base, pair by pair: the median, its 95 % interval, and the pairs' quartiles."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, figures in by_server.items():
        if name == BASE:
            continue
        found[name] = {}
        for metric in METRICS:
            pairs = zip(figures[metric.key], by_server[BASE][metric.key], strict=True)
            ratios = [value / base - 1 for value, base in pairs]
            low, high = _interval(ratios)
            quarter, _, three_quarters = _quantiles(ratios)
            found[name][metric.key] = {
                "median": median(ratios),
                "low": low,
                "high": high,
                "quarter": quarter,
                "three_quarters": three_quarters,
            }
    return found


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Bootstrap the 95 % interval of the median."""
    source = random.Random(0)
    medians = sorted(median(source.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES) - 1]


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(last / 4)], ordered[round(last / 2)], ordered[round(last * 3 / 4)]


def _report(
    changes: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]], values: Values, idle: float
) -> list[str]:
    """Print the tables and return what was missed: a server loses over 1 % and more than alike servers differ."""
    out = Console(width=150)
    missed = []
    for kind, by_server in changes.items():
        table = Table(title=f"{kind}: median of {len(values[kind][BASE][METRICS[0].key])} pairs", title_justify="left")
        for title in ("server", *(metric.title for metric in METRICS)):
            table.add_column(title, justify="left" if title == "server" else "right")
        table.add_row(BASE, *(f"{median(values[kind][BASE][metric.key]):.2f}" for metric in METRICS))
        for name, by_metric in by_server.items():
            table.add_row(name, *(_change(by_metric[metric.key]) for metric in METRICS))
        out.print(table)
        twin = by_server[TWIN][METRICS[0].key]
        spread = max(abs(twin["low"]), abs(twin["high"]))
        for name in (ON, WHOLE):
            loss = -by_server[name][METRICS[0].key]["median"]
            if loss > max(0.01, spread):
                missed.append(f"{kind}: {name} loses {loss:.1%} of throughput; alike servers differ by {spread:.1%}")
    out.print("A change is to `absent` in the same pair: the median and its 95 % interval.", highlight=False)
    out.print(f"All servers idle together take {idle:.1%} of one core.", highlight=False)
    for line in missed:
        out.print(f"missed: {line}", highlight=False)
    return missed


def _change(change: Mapping[str, float]) -> str:
    return f"{change['median']:+.1%} [{change['low']:+.1%}, {change['high']:+.1%}]"


def _idle_cpu(processes: Processes, *, seconds: float = 5.0) -> float:
    """Return the share of one core that all servers take while nobody asks them anything."""
    before = _cpu_s(processes.folder)
    time.sleep(seconds)
    return (_cpu_s(processes.folder) - before) / seconds


def _cpu_s(folder: Path) -> float:
    """Add up the processor time of every process that has its temporary files in this folder."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if f"HF_HOME={folder}/".encode() in (entry / "environ").read_bytes():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _what_was_recorded(folder: Path) -> dict[str, dict[str, object]]:
    """Read what the workers said last: samples, drops and the overhead they measured themselves."""
    found = {}
    for path in sorted(folder.glob("spool-*/*/[0-9]*/state.json")):
        state = json.loads(path.read_text())
        found[path.relative_to(folder).parts[0].removeprefix("spool-")] = {
            "plain_steps": sum(kind["num_steps"] for kind in state["steps"]),
            "samples": state["num_samples"],
            "dropped": state["dropped"],
            "overhead_ratio": state["overhead_ns"] / max(1, state["serving_ns"]),
        }
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument(
        "--round-s", type=float, default=4.0, help="how long one server is measured at a time (seconds)"
    )
    parser.add_argument("--load", type=float, default=0.6, help="arrivals as a share of what the server can do")
    parser.add_argument("--burstiness", type=float, default=0.3, help="below 1 requests come in bursts, as in BurstGPT")
    parser.add_argument("--sample-every", type=int, default=Settings.model_fields["sample_every"].default)
    parser.add_argument("--sidecar", action="store_true", help="run a sidecar beside each server that records")
    parser.add_argument("--strict", action="store_true", help="exit 1 where `on` costs more than it may")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
