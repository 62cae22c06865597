"""What the plugin costs a real server, as its clients see it: throughput, time to first token, inter-token latency.

    python benchmarks/serving_overhead.py [--restarts N] [--rounds N] [--round-s S] [--kinds KIND …] [--strict]

Two starts of the very same server differ by several percent, all the while they run, so a start is the unit. Each time
one process imports vLLM and all servers of that time are forks of it: `absent` (no plugin is loaded), `absent again`,
which runs the same, and `whole` (named as extension and as plugin too: the engine, each request and each step are
timed, some recorded, analysis beside the server). All stay up and are measured in turns, in an order of its own for
each round and with the same prompts at the same times. Other kinds: `unnamed` (installed, not asked for), `off` (the
extension with TAXBREAK_ENABLED=false), `on` (the extension at the default rate) and `on, 10×` its rate and its budget.
A change is the median over the times of the ratio to `absent` of that time, with a bootstrap interval; how often such
an interval holds 0 for servers that are alike is told from `absent again`.
Prints tables and writes `benchmarks/results/serving_overhead.json`.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from bench_serve import METRICS, Arrivals, Client
from machine import ROOT, describe_machine
from pairs import Change, change, coverage, differences
from rich.console import Console
from rich.table import Table

from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, RunningServer, plain_environment, start_vllm
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

RESULTS = Path(__file__).resolve().parent / "results" / "serving_overhead.json"
BASE, TWIN, WHOLE = "absent", "absent again", "whole"
TIMES = 10
# Threads and processes that spin for one another take each other's cores, and throughput halves or not by chance. And a
# client that pauses between two rounds must not find its connections closed.
CALM = {"VLLM_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"}
_MARK = "TAXBREAK_BENCH"
_EVERY, _BUDGET = (Settings.model_fields[name].default for name in ("sample_every", "overhead_budget_ratio"))
KINDS: Mapping[str, tuple[Sequence[str], Mapping[str, str]]] = {
    BASE: ((), {"VLLM_PLUGINS": ""}),
    TWIN: ((), {"VLLM_PLUGINS": ""}),
    "unnamed": ((), {}),
    "off": (WORKER_EXTENSION, {"TAXBREAK_ENABLED": "false"}),
    "on": (WORKER_EXTENSION, {}),
    WHOLE: (WORKER_EXTENSION, {"VLLM_PLUGINS": "taxbreak"}),
    f"on, {TIMES}×": (
        WORKER_EXTENSION,
        {"TAXBREAK_SAMPLE_EVERY": str(_EVERY // TIMES), "TAXBREAK_OVERHEAD_BUDGET_RATIO": str(TIMES * _BUDGET)},
    ),
}

# kind of arrivals -> kind of server -> metric -> for each time the figures of its rounds
Values = dict[str, dict[str, dict[str, list[list[float]]]]]


def main() -> None:
    """Measure, print, write."""
    options = _options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    load_before, started_s = os.getloadavg()[0], time.monotonic()
    values: Values = {}
    arrivals: dict[str, Arrivals] = {}
    idle, recorded = [], []
    for number in range(options.restarts):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, _forking(Path(folder)) as processes:
            model = write_tiny_llama(Path(folder) / "tiny-llama")
            servers = _start(processes, model, (BASE, TWIN, *options.kinds))
            client = Client(model)
            arrivals = arrivals or _arrivals(client, servers[BASE], options)
            idle.append(_idle_cpu(Path(folder)))
            _measure(client, servers, arrivals, options, number, values)
            recorded.append(_what_was_recorded(Path(folder)))
        _say(f"{number + 1} of {options.restarts} after {time.monotonic() - started_s:.0f} s")
    found = {how: _differences(by_kind) for how, by_kind in values.items()}
    covered = {how: {key: coverage(alike) for key, alike in by_kind[TWIN].items()} for how, by_kind in found.items()}
    changes = {
        how: {kind: {key: change(each) for key, each in of_kind.items()} for kind, of_kind in by_kind.items()}
        for how, by_kind in found.items()
    }
    result = {
        "machine": describe_machine("vllm", "torch", "taxbreak-vllm")
        | {"load_1min": {"before": load_before, "after": os.getloadavg()[0]}},
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "arrivals": {how: asdict(arrivals[how]) for how in values},
        "idle_servers_cpu_ratio": median(idle),
        "recorded": recorded,
        "took_s": round(time.monotonic() - started_s),
        "change": {
            how: {kind: {key: asdict(one) for key, one in of_kind.items()} for kind, of_kind in by_kind.items()}
            for how, by_kind in changes.items()
        },
        "coverage": covered,
        "values": values,
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    missed = _report(changes, covered, values, median(idle))
    sys.exit(1 if missed and options.strict else 0)


@contextlib.contextmanager
def _forking(folder: Path) -> Iterator[Processes]:
    """Give processes of which those that run vLLM are forks of one that imported it, of this time alone."""
    forkserver = _module(ROOT / "tests" / "e2e" / "forkserver.py")
    env = plain_environment() | CALM | {_MARK: str(folder)}
    with Processes(folder / "import") as importing:
        address = importing.folder / "address"
        command = [sys.executable, forkserver.__file__, str(address), *forkserver.IMPORTED]
        importing.start("forkserver", command, env=env).wait_until(address.exists, "listening", timeout_s=60)
        with forkserver.ForkingProcesses(folder, address) as processes:
            yield processes


def _module(path: Path) -> Any:  # noqa: ANN401 - a module
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"{path} is not there: this benchmark runs from a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _start(processes: Processes, model: Path, kinds: Sequence[str]) -> dict[str, RunningServer]:
    servers = {}
    for number, kind in enumerate(random.sample(kinds, len(kinds))):
        flags, env = KINDS[kind]
        env = {"TAXBREAK_SPOOL": str(processes.folder / f"spool-{number}"), _MARK: str(processes.folder)} | env | CALM
        servers[kind] = start_vllm(processes, model, flags=(*flags, *ONE_PROCESS), env=env, name=f"vllm-{number}")
    return {kind: servers[kind].wait() for kind in kinds}


def _arrivals(client: Client, server: RunningServer, options: argparse.Namespace) -> dict[str, Arrivals]:
    """Measure what the server can do at most, and let requests come at a share of that."""
    client.run(server, Arrivals(None), num_prompts=50, seed=1)  # warm
    num_prompts = 200
    rate = num_prompts / client.run(server, Arrivals(None), num_prompts=num_prompts, seed=2)["duration"]
    _say(f"at most {rate:.1f} requests/s; others than saturated come at {options.load:.0%} of that")
    return {
        "saturated": Arrivals(None),
        "poisson": Arrivals(round(rate * options.load, 2)),
        "bursts": Arrivals(round(rate * options.load, 2), burstiness=options.burstiness),
    }


def _measure(
    client: Client,
    servers: Mapping[str, RunningServer],
    arrivals: Mapping[str, Arrivals],
    options: argparse.Namespace,
    number: int,
    values: Values,
) -> None:
    """Measure every server of one time in every round; the first of each server is thrown away."""
    order = random.Random(number)
    num_prompts = {how: _num_prompts(arrivals, how, options) for how in options.arrivals}
    for server in servers.values():
        client.run(server, arrivals["saturated"], num_prompts=max(num_prompts.values()), seed=3)
    for how in options.arrivals:
        for kind in servers:
            for metric in METRICS:
                values.setdefault(how, {}).setdefault(kind, {}).setdefault(metric.key, []).append([])
    for turn in range(options.rounds):
        for how in options.arrivals:
            seed = 10_000 * number + 100 * turn + len(how)  # the same prompts at the same times for all
            for kind in order.sample(list(servers), len(servers)):
                figures = client.run(servers[kind], arrivals[how], num_prompts=num_prompts[how], seed=seed)
                for metric in METRICS:
                    values[how][kind][metric.key][-1].append(figures[metric.key])


def _num_prompts(arrivals: Mapping[str, Arrivals], how: str, options: argparse.Namespace) -> int:
    rate = arrivals[how].rate or (arrivals["poisson"].rate or 0) / options.load
    return max(20, round(rate * options.round_s))


def _differences(by_kind: Mapping[str, Mapping[str, list[list[float]]]]) -> dict[str, dict[str, list[float]]]:
    return {
        kind: {key: differences(times, by_kind[BASE][key]) for key, times in of_kind.items()}
        for kind, of_kind in by_kind.items()
        if kind != BASE
    }


def _report(
    changes: Mapping[str, Mapping[str, Mapping[str, Change]]],
    covered: Mapping[str, Mapping[str, float]],
    values: Values,
    idle: float,
) -> list[str]:
    """Print the tables and return what was missed: a server loses over 1 % and more than alike servers differ."""
    out = Console(width=120)
    missed = []
    throughput = METRICS[0].key
    for how, by_kind in changes.items():
        base = values[how][BASE]
        table = Table(title=f"{how}: {len(base[throughput])} starts of each server", title_justify="left")
        for title in ("server", *(metric.title for metric in METRICS)):
            table.add_column(title, justify="left" if title == "server" else "right")
        middle = {metric.key: median(median(rounds) for rounds in base[metric.key]) for metric in METRICS}
        table.add_row(BASE, *(f"{middle[metric.key]:.2f}" for metric in METRICS))
        for kind, found in by_kind.items():
            table.add_row(kind, *(str(found[metric.key]) for metric in METRICS))
        table.add_row("coverage", *(f"{covered[how][metric.key]:.1%}" for metric in METRICS))
        out.print(table)
        twin = by_kind[TWIN][throughput]
        spread = max(0.01, -twin.low, twin.high)
        for kind in by_kind.keys() & {"on", WHOLE}:
            loss = -by_kind[kind][throughput].median
            if loss > spread:
                missed.append(f"{how}: {kind} loses {loss:.1%} of throughput; alike servers differ by {spread:.1%}")
    out.print(
        "A change is to `absent` of the same time: the median over starts and its 95 % interval.", highlight=False
    )
    out.print("Coverage: how often such an interval holds 0 for alike servers.", highlight=False)
    out.print(f"All servers idle together take {idle:.1%} of one core.", highlight=False)
    for line in missed:
        out.print(f"missed: {line}", highlight=False)
    return missed


def _idle_cpu(folder: Path, *, seconds: float = 3.0) -> float:
    """Return the share of one core that all servers of one time take while nobody asks them anything."""
    before = _cpu_s(folder)
    time.sleep(seconds)
    return (_cpu_s(folder) - before) / seconds


def _cpu_s(folder: Path) -> float:
    """Add up the processor time of every process that bears the mark of this folder."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if f"{_MARK}={folder}\0".encode() in (entry / "environ").read_bytes():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _what_was_recorded(folder: Path) -> list[dict[str, object]]:
    """Read what the workers of one time said last, and how many requests were followed beside them."""
    found = []
    for path in sorted(folder.glob("spool-*")):
        spool = Spool(path, max_bytes=2**30, max_captures=10**6)
        found += [
            {
                "plain_steps": sum(kind.num_steps for kind in state.steps),
                "samples": state.num_samples,
                "dropped": dict(state.dropped),
                "overhead_ratio": state.overhead_ns / max(1, state.serving_ns),
                "iterations": sum(engine.num_iterations for engine in spool.engine_states()),
                "requests": sum(api.num_requests for api in spool.frontend_states()),
            }
            for state in spool.states()
        ]
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=12, help="how often all servers are started")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, each time")
    parser.add_argument(
        "--round-s", type=float, default=3.0, help="how long one server is measured at a time (seconds)"
    )
    parser.add_argument(
        "--kinds", nargs="+", default=[WHOLE], choices=[kind for kind in KINDS if kind not in (BASE, TWIN)]
    )
    parser.add_argument(
        "--arrivals", nargs="+", default=["saturated", "poisson"], choices=["saturated", "poisson", "bursts"]
    )
    parser.add_argument("--load", type=float, default=0.6, help="arrivals as a share of what the server can do")
    parser.add_argument("--burstiness", type=float, default=0.3, help="below 1 requests come in bursts, as in BurstGPT")
    parser.add_argument("--strict", action="store_true", help="exit 1 where `on` or `whole` costs more than it may")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
