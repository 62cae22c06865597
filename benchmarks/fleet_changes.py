"""What a fleet's report finds of what was planted, and what it finds where nothing was: ROC, intervals.

Noise is drawn from what real servers showed, how far captures of one start lie from its middle, and how far starts lie
from one another: `--measure N` starts as many servers, one after the other, `--spools` reads what is there. Of few
starts their spread is that of alike ones of `whatif_pairs.py`. Hosts besides differ by `--between`. In: the spread of
the run before, if there is one. Out: `results/fleet_changes.json`.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from machine import ROOT, describe_machine

from taxbreak_vllm.fleet.rows import analyzed, row_of
from taxbreak_vllm.insight.apart import MIN_APART, is_apart, scores
from taxbreak_vllm.insight.changes import MIN_CAPTURES, Observations, medians, move_over_time, moves_at_deploys
from taxbreak_vllm.insight.shifts import MAX_P, is_change
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.fleet import StepRow
from taxbreak_vllm.spool.layout import recordings
from taxbreak_vllm.spool.spool import Spool

RESULTS = ROOT / "benchmarks" / "results" / "fleet_changes.json"
SIZES = (0.0, 0.03, 0.05, 0.10)
FALSE_RATES = (1e-4, 1e-3, 1e-2, 1e-1)
WEEK_NS = 7 * 86_400 * 10**9
MIN_STARTS = 6  # of fewer their spread is taken from `whatif_pairs.json`
_QUANTILES = np.linspace(0.005, 0.995, 100)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=int, default=0, metavar="N", help="start N real servers for the spread")
    parser.add_argument(
        "--spools", type=Path, nargs="+", help="of several starts of one server, in place of starting it"
    )
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    parser.add_argument("--comparisons", type=int, default=20_000, help="of no change, and a twentieth of each size")
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--captures", type=int, default=60, help="a host")
    parser.add_argument("--between", type=float, default=0.05, help="spread of hosts (of logarithms)")
    options = parser.parse_args()
    told = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if options.spools:
        spread = of_spools(options.spools)
    else:
        spread = measured(options.measure) if options.measure else told["spread"]
    traces = of_traces(options.traces) or told.get("spread_of_traces")
    result = {
        "machine": describe_machine("numpy"),
        "spread": spread,
        "spread_of_traces": traces,
        "hosts": options.hosts,
        "captures_a_host": options.captures,
        "comparisons": options.comparisons,
        "between": options.between,
        "with_spread": scenario(spread["delta_ft_ns"], options),
    }
    if traces:
        widest = max(one["spread"] for one in traces.values())
        normal = np.quantile(np.random.default_rng(0).standard_normal(10**6), _QUANTILES)
        like = {"captures": widest * normal, "starts": spread["delta_ft_ns"]["starts"]}
        result["with_spread_of_traces"] = scenario(like, options)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for name in ("with_spread", "with_spread_of_traces"):
        print(name, json.dumps(result.get(name)))


def scenario(figures: dict, options: argparse.Namespace) -> dict:
    """Tell what is found among noise of such a spread."""
    return {
        "deploy": told_of({str(size): deploy(size, figures, options) for size in SIZES}, "p"),
        "slow_host": told_of({str(size): slow_host(size, figures, options) for size in SIZES}, "score"),
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


def slow_host(size: float, spread: dict, options: argparse.Namespace) -> dict:
    """Return, of many fleets, the score of a host that takes so much longer, and whether it is called apart.

    Hosts that are alike differ by what starts differ by, as like hosts do that take part in no other comparison.
    """
    draw, score, found = np.random.default_rng(7 + round(1000 * size)), [], []
    num = options.hosts
    for _ in range((options.comparisons if size == 0 else options.comparisons // 2) // num + 1):
        start = np.interp(draw.uniform(0, 1, num), _QUANTILES, spread["starts"])
        noise = np.interp(draw.uniform(0, 1, (num, options.captures)), _QUANTILES, spread["captures"])
        level = start + np.median(noise, axis=1)
        slow = range(num) if size == 0 else [int(draw.integers(num))]
        if size:
            level[slow[0]] += np.log1p(size)
        apart, own = is_apart(level), scores(level)
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


def measured(num_starts: int) -> dict:
    """Start a real server so often, record its decode steps, and tell how captures and starts of it spread."""
    from taxbreak_vllm.demo.load import send
    from taxbreak_vllm.demo.models import write_tiny_llama
    from taxbreak_vllm.demo.processes import Processes
    from taxbreak_vllm.demo.servers import start_vllm

    with tempfile.TemporaryDirectory(prefix="taxbreak-fleet-") as name, Processes(Path(name)) as processes:
        model = write_tiny_llama(Path(name) / "tiny-llama")
        for start in range(num_starts):
            spool = Spool(Path(name) / f"spool-{start}", max_bytes=2**30, max_captures=10_000)
            env = {
                "TAXBREAK_SPOOL": str(spool.root),
                "TAXBREAK_SAMPLE_EVERY": "8",
                "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1",
                "TAXBREAK_MAX_STALL_MS": "1000",
            }
            server = start_vllm(processes, model, env=env, name=f"vllm-{start}").wait()
            for seed in count(1):
                send(server.url, "tiny-llama", seed=seed)
                if len(spool.captures()) >= 80:
                    break
            server.process.stop()
            print(f"start {start}: {len(spool.captures())} captures", flush=True)
        return of_spools(sorted(Path(name).glob("spool-*")))


def of_spools(folders: Sequence[Path]) -> dict:
    """Tell how captures of decode steps and starts of the server with most of them spread."""
    rows = []
    for path in (path for folder in folders for path in recordings(folder)):
        try:
            row = row_of(path.name, *analyzed(path))
        except TaxbreakError as error:
            print(f"left out: {error}")
            continue
        if row.phase == "decode" and row.delta_ft_ns:
            rows.append(row)
    (kind, _), *_ = Counter((row.model, row.settings, row.tokens) for row in rows).most_common(1)
    rows = [row for row in rows if (row.model, row.settings, row.tokens) == kind]
    many = Counter(row.server for row in rows)
    rows = [row for row in rows if many[row.server] >= MIN_CAPTURES]
    told = {name: _spread(rows, name) for name in ("delta_ft_ns", "plain_ns", "active_ns")}
    return told | {"model": kind[0], "tokens": kind[2], "num_starts": len({row.server for row in rows})}


def _spread(rows: Sequence[StepRow], name: str) -> dict:
    """Return quantiles of captures about the middle of their start, and of these middles (of logarithms)."""
    starts = sorted({row.server for row in rows})
    start = np.array([starts.index(row.server) for row in rows])
    value = np.log(np.array([getattr(row, name) for row in rows], dtype=float))
    known = np.isfinite(value)
    middle, _ = medians(start[known], value[known], len(starts))
    left = value[known] - middle[start[known]]
    middle = middle[np.isfinite(middle)]
    if len(middle) < MIN_STARTS:
        middle = alike()
    return {
        "captures": np.quantile(left, _QUANTILES).round(5).tolist(),
        "starts": np.quantile(middle - np.median(middle), _QUANTILES).round(5).tolist(),
        "num": len(left),
    }


def alike() -> np.ndarray:
    """Return how far starts of one server lie from one another, of the pairs of alike ones of `whatif_pairs.py`."""
    pairs = json.loads((RESULTS.parent / "whatif_pairs.json").read_text())["pairs"]
    ratios = np.log([pair["measured"] for pair in pairs if pair["change"] == "alike"]) / np.sqrt(2)
    return np.concatenate([ratios, -ratios])


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
