"""What a fleet's report finds of what was planted, and what it finds where nothing was: ROC, intervals.

Noise is drawn from what real servers showed, how far captures of one start lie from its middle, and how far starts lie
from one another: `--measure N` starts as many servers, `--spools` reads what is there. Once it is that of ΔFT and of
plain steps of these servers, once starts are as far apart as in ΔFT there, and captures as steps of the given GPU
traces. Hosts besides differ by `--between`. In: the spread of the run before, if there is one. Out:
`results/fleet_changes.json`.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from engine_core import part_cores
from machine import ROOT, describe_machine

from taxbreak_vllm.demo.load import send
from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, start_vllm
from taxbreak_vllm.fleet.rows import analyzed, row_of
from taxbreak_vllm.insight.apart import MIN_APART, host_levels, is_apart, scores
from taxbreak_vllm.insight.changes import MIN_CAPTURES, Observations, medians, move_over_time, moves_at_deploys
from taxbreak_vllm.insight.shifts import MAX_P, is_change
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.fleet import StepRow
from taxbreak_vllm.spool.layout import recordings
from taxbreak_vllm.spool.spool import Spool

RESULTS = ROOT / "benchmarks" / "results" / "fleet_changes.json"
SIZES = (0.0, 0.03, 0.05, 0.10)
STARTS = (1, 2, 4, 8)  # of a server on each host, within the time that is looked at
FALSE_RATES = (1e-4, 1e-3, 1e-2, 1e-1)
WEEK_NS = 7 * 86_400 * 10**9
FLAGS = (*WORKER_EXTENSION, *ONE_PROCESS)
NUM_CAPTURES = 300  # of each start, after those of its first steps
WARM_UP_STEPS = 1000  # in which the CPU build is a tenth slower
NUM_BINS = 16  # of the time in which they are served, in each of which all are as fast or slow
_QUANTILES = np.linspace(0.005, 0.995, 100)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=int, default=0, metavar="N", help="start N real servers for the spread")
    parser.add_argument("--spools", type=Path, nargs="+", help="of several starts of one server, served together")
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    parser.add_argument("--comparisons", type=int, default=20_000, help="of no change, and a twentieth of each size")
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--captures", type=int, default=60, help="a host")
    parser.add_argument("--between", type=float, default=0.05, help="spread of hosts (of logarithms)")
    options = parser.parse_args()
    told = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if options.spools:
        spread = of_spools(options.spools)
    elif options.measure:
        with tempfile.TemporaryDirectory(prefix="taxbreak-fleet-", dir="/var/tmp") as folder:
            spread = measured(options.measure, Path(folder))
    else:
        spread = told["spread"]
    RESULTS.write_text(json.dumps(told | {"spread": spread}, indent=1) + "\n")  # what took longest
    traces = of_traces(options.traces) or told.get("spread_of_traces")
    result = {
        "machine": describe_machine("numpy"),
        "spread": spread,
        "spread_of_traces": traces,
        "hosts": options.hosts,
        "captures_a_host": options.captures,
        "comparisons": options.comparisons,
        "between": options.between,
        "with_spread": {name: scenario(spread[name], options) for name in ("delta_ft_ns", "plain_ns")},
    }
    if traces:
        widest = max(one["spread"] for one in traces.values())
        normal = np.quantile(np.random.default_rng(0).standard_normal(10**6), _QUANTILES)
        like = {"captures": widest * normal, "starts": spread["delta_ft_ns"]["starts"]}
        result["with_spread_of_traces"] = scenario(like, options)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result.get(name) for name in ("with_spread", "with_spread_of_traces")}, indent=1))


def scenario(figures: dict, options: argparse.Namespace) -> dict:
    """Tell what is found among noise of such a spread."""
    return {
        "deploy": told_of({str(size): deploy(size, figures, options) for size in SIZES}, "p"),
        "slow_host": {
            str(starts): told_of({str(size): slow_host(size, starts, figures, options) for size in SIZES}, "score")
            for starts in STARTS
        },
        "time": over_time(figures, options),
    }


def fleet(size: float, spread: dict, options: argparse.Namespace, draw: np.random.Generator) -> Observations:
    """Draw a week of captures of hosts that all go to another version about half-way."""
    num, each = options.hosts, options.captures
    host = np.repeat(np.arange(num), each)
    when = np.sort(draw.uniform(0, 1, (num, each)), axis=1).ravel()
    version = (when >= np.repeat(draw.uniform(0.4, 0.6, num), each)).astype(np.int64)
    level = options.between * draw.standard_normal(num)
    start = np.interp(draw.uniform(0, 1, (num, 2)), _QUANTILES, spread["starts"])
    noise = np.interp(draw.uniform(0, 1, len(host)), _QUANTILES, spread["captures"])
    tokens = draw.uniform(2, 3, len(host))
    value = level[host] + start[host, version] + np.log1p(size) * version + noise
    return Observations(host, host, version, (when * WEEK_NS).astype(np.int64), tokens, value)


def deploy(size: float, spread: dict, options: argparse.Namespace) -> dict:
    """Return, of many fleets, the p of the change at the deploy, whether it is called one, and its interval."""
    draw, found = np.random.default_rng(round(1000 * size)), []
    for _ in range(options.comparisons if size == 0 else options.comparisons // 20):
        (move,) = moves_at_deploys(fleet(size, spread, options, draw))
        found.append(move.shift)
    return {
        "p": [shift.p_value for shift in found],
        "found": sum(map(is_change, found)) / len(found),
        "held": sum(shift.low <= size <= shift.high for shift in found) / len(found),
        "half_width": float(np.median([(shift.high - shift.low) / 2 for shift in found])),
    }


def slow_host(size: float, starts: int, spread: dict, options: argparse.Namespace) -> dict:
    """Return, of many fleets, the score of a host that takes so much longer, and whether it is called apart.

    Each host has so many starts, each with another version, among which its captures are shared. Hosts that are alike
    differ by what starts differ by.
    """
    draw, score, found = np.random.default_rng(7 + round(1000 * size)), [], []
    num, each = options.hosts, options.captures // starts
    host, version = np.repeat(np.arange(num), starts * each), np.tile(np.repeat(np.arange(starts), each), num)
    for _ in range((options.comparisons if size == 0 else options.comparisons // 2) // num + 1):
        level = np.interp(draw.uniform(0, 1, (num, starts)), _QUANTILES, spread["starts"])
        slow = range(num) if size == 0 else [int(draw.integers(num))]
        if size:
            level[slow[0]] += np.log1p(size)
        value = level[host, version] + np.interp(draw.uniform(0, 1, len(host)), _QUANTILES, spread["captures"])
        tokens = draw.uniform(2, 3, len(host))
        told = host_levels(value, tokens, version, host * starts + version, host, num)
        apart, own = is_apart(*told), scores(told.level, told.error)
        score += [float(abs(own[at])) for at in slow]
        found += [bool(apart[at]) for at in slow]
    return {"score": score, "found": sum(found) / len(found), "num": len(found)}


def over_time(spread: dict, options: argparse.Namespace) -> dict:
    """Return how often a change at a time that no version explains is found: of 5 %, and of none."""
    draw, result = np.random.default_rng(3), {}
    for size in (0.0, 0.05):
        found = []
        for _ in range(options.comparisons // (20 if size == 0 else 200)):
            seen = fleet(0.0, spread, options, draw)
            own = np.zeros_like(seen.version)
            later = np.log1p(size) * (seen.at_ns > WEEK_NS * 0.6)
            restart = np.zeros(len(own))
            move = move_over_time(
                Observations(seen.host, seen.place, own, seen.at_ns, seen.size, seen.value + later + restart)
            )
            found.append(move is not None and is_change(move.shift))
        result[str(size)] = {"found": sum(found) / len(found), "num": len(found)}
    return result


def told_of(sizes: dict[str, dict], by: str) -> dict:
    """Return the ROC: how much of each size is found where so much of nothing is."""
    drawn = {size: np.array(one.pop(by)) * (-1 if by == "p" else 1) for size, one in sizes.items()}
    none = np.sort(drawn["0.0"])
    cuts = {str(rate): float(none[-max(1, int(rate * len(none)))]) for rate in FALSE_RATES}
    roc = {size: {rate: float((own >= cut).mean()) for rate, cut in cuts.items()} for size, own in drawn.items()}
    least = MAX_P if by == "p" else MIN_APART
    return {"called_from": least, "sizes": sizes, "found_at_false_rate": roc}


def measured(num_starts: int, folder: Path) -> dict:
    """Start so many real servers, record decode steps of each in turn, and tell how captures and starts spread.

    All of them are served at the same time, a round each in turn, as those of a fleet are: a minute in which this
    machine is slower is a minute of them all. Each engine has a core of its own, as it has on a host with a GPU.
    """
    with Processes(folder) as processes:
        model = write_tiny_llama(folder / "tiny-llama")
        cores, servers = sorted(os.sched_getaffinity(0)), []
        for start in range(num_starts):
            os.sched_setaffinity(0, cores)  # what the server inherits
            spool = Spool(folder / f"spool-{start}", max_bytes=2**30, max_captures=10_000)
            env = {
                "TAXBREAK_SPOOL": str(spool.root),
                "TAXBREAK_SAMPLE_EVERY": "8",
                "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1",
                "TAXBREAK_MAX_STALL_MS": "1000",
                "OMP_NUM_THREADS": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
            server = start_vllm(processes, model, flags=FLAGS, env=env, name=f"vllm-{start}").wait()
            servers.append((server, spool))
            send(server.url, "tiny-llama", seed=0)
            part_cores(cores)
        for seed in count(1):
            for server, _ in servers:
                send(server.url, "tiny-llama", seed=seed)
            least = min(len(spool.captures()) for _, spool in servers)
            print(f"round {seed}: {least} captures of each start or more", flush=True)
            if least >= NUM_CAPTURES + WARM_UP_STEPS // 8:
                break
    return of_spools(sorted(folder.glob("spool-*")))


def of_spools(folders: Sequence[Path]) -> dict:
    """Tell how captures of decode steps and starts of the server with most of them spread."""
    rows = []
    for path in (path for folder in folders for path in recordings(folder)):
        try:
            info, breakdown = analyzed(path)
        except TaxbreakError as error:
            print(f"left out: {error}")
            continue
        row = row_of(path.name, info, breakdown)
        if row.phase == "decode" and row.delta_ft_ns and info.step_index >= WARM_UP_STEPS:
            rows.append(row)
    (kind, _), *_ = Counter((row.model, row.settings, row.tokens) for row in rows).most_common(1)
    rows = [row for row in rows if (row.model, row.settings, row.tokens) == kind]
    many = Counter(row.server for row in rows)
    rows = [row for row in rows if many[row.server] >= MIN_CAPTURES]
    told = {name: _spread(rows, name) for name in ("delta_ft_ns", "plain_ns", "active_ns")}
    return told | {"model": kind[0], "tokens": kind[2], "num_starts": len({row.server for row in rows})}


def _spread(rows: Sequence[StepRow], name: str) -> dict:
    """Return quantiles of captures about the middle of their start, and of these middles (of logarithms).

    Of starts what all of them have at one time is taken off, and as much of what is left as so few captures would show
    of starts that are the same.
    """
    value = np.log(np.array([getattr(row, name) or np.nan for row in rows], dtype=float))
    known = np.isfinite(value)
    names, start = np.unique(np.array([row.server for row in rows])[known], return_inverse=True)
    value, at_ns = value[known], np.array([row.started_unix_ns for row in rows])[known]
    bins = np.searchsorted(np.quantile(at_ns, np.linspace(0, 1, NUM_BINS + 1)[1:-1]), at_ns, side="right")
    together = value - medians(bins, value, NUM_BINS)[0][bins]
    middle, num = medians(start, together, len(names))
    error = 1.2533 * 1.4826 * np.median(np.abs(together - middle[start])) / np.sqrt(num.mean())
    seen = float(middle.std(ddof=1))
    own = np.sqrt(max(0.0, 1 - (error / seen) ** 2)) * (middle - middle.mean())
    return {
        "captures": np.quantile(value - medians(start, value, len(names))[0][start], _QUANTILES).round(5).tolist(),
        "starts": np.quantile(own, _QUANTILES).round(5).tolist(),
        "starts_sd": float(own.std(ddof=1)),
        "starts_sd_seen": seen,
        "starts_error": float(error),
        "num": len(value),
    }


def of_traces(folder: Path) -> dict | None:
    """Return the spread of ΔFT over the steps of each given trace that has several alike."""
    from taxbreak_vllm import analyze

    found = {}
    for path in sorted(folder.glob("*.json.gz")):
        steps = [step for step in analyze(path).steps if step.taxes.delta_ft_ns]
        if len(steps) >= 5:
            value = np.log([step.taxes.delta_ft_ns or 1 for step in steps])
            found[path.name] = {
                "num": len(steps),
                "spread": float(1.4826 * np.median(np.abs(value - np.median(value)))),
            }
    return found or None


if __name__ == "__main__":
    main()
