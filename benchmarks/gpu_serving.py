"""The plugin on live vLLM with dummy weights: what graphs change, what recording costs, what it leaves behind.

    python benchmarks/gpu_serving.py --stage modes --model llama --out DIR
    python benchmarks/gpu_serving.py --stage cost --out DIR
    python benchmarks/gpu_serving.py --all --device cpu --tiny --out DIR      # a rehearsal

`live` and `truth` are told of in `gpu_live.py`. `floors` measures what the device reaches, once. `modes` serves each
graph mode in turn under prefill, decode and mixed load and decomposes what the plugin recorded. `cost` serves the same
model without the plugin, with it, and with what may make it cheaper, all at once, and sends the same load to one after
the other. Writes `gpu_serving.json` and up to three gzipped traces; what DIR holds already is not measured again.
"""

import argparse
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
for _folder in (str(HERE), str(HERE.parent)):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

from gpu_book import Book, table  # noqa: E402 - after the path
from gpu_captures import captures_of, decomposed, keep, spool_of, stalls_ns  # noqa: E402
from gpu_lab import child_environment  # noqa: E402
from gpu_live import live, truth  # noqa: E402
from gpu_servers import Load, Server, start, write_model  # noqa: E402

from taxbreak_vllm.baselines.store import Baselines  # noqa: E402
from taxbreak_vllm.demo.processes import ProcessError, Processes  # noqa: E402
from taxbreak_vllm.replay.runner import measure_floors  # noqa: E402
from taxbreak_vllm.replay.task import Options  # noqa: E402
from taxbreak_vllm.spool.capture import Capture  # noqa: E402
from taxbreak_vllm.taxes.recording import Recording  # noqa: E402
from taxbreak_vllm.taxes.terms import Terms  # noqa: E402
from taxbreak_vllm.whatif.asked import asked  # noqa: E402

_GRAPHS = {
    "eager": ("--enforce-eager",),
    "piecewise": ("--compilation-config", '{"cudagraph_mode": "PIECEWISE"}'),
    "full": ("--compilation-config", '{"cudagraph_mode": "FULL_AND_PIECEWISE"}'),
}
# vLLM chooses a model runner by itself; these force the older and the newer one where it has both.
_RUNNERS = {"full, runner V1": "0", "full, runner V2": "1"}
_LOADS = (
    Load("prefill", 64, 8, 512, 1),
    Load("decode", 16, 16, 16, 256),
    Load("decode of one", 1, 1, 16, 384),
    Load("mixed", 48, 24, 384, 48),
)
_MODES_EVERY = "20"
_CEILINGS_S = 20.0
_MAX_ASKED = 8  # captures, each of which takes a second to be asked
_COST_LOADS = (Load("decode", 16, 16, 16, 384), Load("decode of one", 1, 1, 16, 512))
MODE_COLUMNS = (
    "captures", "plain_ns", "window_ns", "device_ns", "orchestration_ns", "kt_ns", "exposed_ns", "hdbi", "kernels",
    "graph_launches", "dilation", "bracket_ns", "drained_ns", "guard",
)  # fmt: skip


def floors(book: Book, args: argparse.Namespace, work: Path) -> dict[str, Any] | None:
    """T_sys, graph floors and ceilings, for the breakdowns of all stages."""
    found: dict[str, Any] | None = book.case("floors", args.device, partial(_floors, args, work))
    return found


def modes(book: Book, args: argparse.Namespace, work: Path) -> None:
    """HDBI and exposed tax by graph mode, load and phase; what graphs saved beside what was predicted."""
    is_gpu = args.device != "cpu"
    known_floors = floors(book, args, work)
    graphs = {mode: (mode, {}) for mode in ("piecewise", "full")} if is_gpu else {}
    runners = {name: ("full", {"VLLM_USE_V2_MODEL_RUNNER": value}) for name, value in _RUNNERS.items()}
    if not is_gpu:
        print("  modes/piecewise, full, runners: skipped, CUDA graphs and the second model runner need a GPU")
    for kind in args.models:
        wanted: dict[str, tuple[str, dict[str, str]]] = {"eager": ("eager", {})} | graphs
        if is_gpu and kind == "llama":  # the other takes too much memory to be served five times at once
            wanted |= runners
        known = book.stages.get("modes", {})
        missing = {name: how for name, how in wanted.items() if f"{kind} {name}" not in known}
        if book.is_over():
            book.left += [f"modes/{kind} {name}" for name in missing]
            missing = {}
        with Processes(work / f"modes-{kind}") as processes:
            model = write_model(kind, work / f"{kind}-model", is_tiny=args.tiny)
            servers = {
                name: start(
                    processes, f"{kind}-{name.replace(', ', '-').replace(' ', '-')}", model, flags=_GRAPHS[mode],
                    env={"TAXBREAK_SAMPLE_EVERY": _MODES_EVERY if is_gpu else "4"} | env, is_gpu=is_gpu,
                )
                for name, (mode, env) in missing.items()
            }  # fmt: skip
            for name, server in servers.items():
                book.case("modes", f"{kind} {name}", partial(_mode, args, work, server, f"{kind}-{name}"))
        _show_modes(book, kind, list(wanted), known_floors)


def _floors(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    environment, floors, ceilings = measure_floors(Options(device=args.device, ceilings_s=_CEILINGS_S))
    with Baselines(work / "baselines.sqlite3") as store:
        store.put_floors(environment, floors)
        if ceilings:
            store.raise_ceilings(environment, ceilings)
        store.export(args.out / "baselines.jsonl")
    found = {str(f.kind) + (f"({f.nodes})" if f.nodes else ""): f.spread.median_ns for f in floors.floors}
    if ceilings:
        found["ceilings"] = {
            **{dtype: rate.per_s for dtype, rate in ceilings.flops_per_s.items()},
            **{f"{size} bytes": rate.per_s for size, rate in ceilings.bytes_per_s.items()},
        }
    return found


def _mode(args: argparse.Namespace, work: Path, server: Server, name: str) -> dict[str, Any]:
    server.wait()
    found: dict[str, Any] = {"loads": {}}
    server.send(_sized(_LOADS[1], args), seed=99)  # the first requests compile what is left
    for number, load in enumerate(_LOADS):
        sized = _sized(load, args)
        heard = server.send(sized, seed=number)
        found["loads"][load.name] = {"load": heard.figures(sized), "phases": {}}
        captures = captures_of(server, heard.began_unix_ns, heard.ended_unix_ns)
        for (phase, mode), group in captures.items():
            entry = decomposed(work, group)
            found["loads"][load.name]["phases"][f"{phase} {mode}"] = entry
            if phase == "decode" and name.endswith("eager"):
                entry["as one graph"] = _as_one_graph(work, group[:_MAX_ASKED])
            if phase == "decode" and load.name == "decode":
                entry["kept"] = keep(args.out, group[len(group) // 2], f"{name}-{mode}")
    return found


def _as_one_graph(work: Path, captures: list[Capture]) -> dict[str, Any]:
    """What these steps would take as one graph, as `taxbreak whatif --graph full` says."""
    plain: list[tuple[int, int, int, int]] = []
    refused = set()
    for capture in captures:
        with (
            Baselines(work / "baselines.sqlite3") as store,
            Recording.open(capture.path, Terms(baselines=store)) as recording,
        ):
            found = asked(graph="full").of(recording)
        window = found.window
        if window is None or window.plain_ns is None or window.plain_predicted_ns is None:
            refused.add(found.refused or found.no_plain or "")
        else:
            low_ns, high_ns = window.plain_low_ns or 0, window.plain_high_ns or 0
            plain.append((window.plain_ns, window.plain_predicted_ns, low_ns, high_ns))
    if not plain:
        return {"refused": sorted(refused)}
    names = ("plain_ns", "predicted_ns", "low_ns", "high_ns")
    return {name: median(row[at] for row in plain) for at, name in enumerate(names)} | {"asked": len(plain)}


def _show_modes(book: Book, kind: str, names: list[str], floors: dict[str, Any] | None) -> None:
    rows, per_step = [], defaultdict(dict)
    for name in names:
        found = book.stages.get("modes", {}).get(f"{kind} {name}") or {}
        for load, entry in found.get("loads", {}).items():
            for phase, values in entry["phases"].items():
                rows.append({"mode": name, "load": load, "step": phase} | {key: values[key] for key in MODE_COLUMNS})
                per_step[load, phase.partition(" ")[0]].setdefault(name, values)
    table(f"{kind}: steps by graph mode (floors: {floors})", rows)
    savings = []
    for (load, phase), by_mode in per_step.items():
        eager = by_mode.get("eager")
        for name, values in by_mode.items():
            if eager and name != "eager" and eager["plain_ns"] and values["plain_ns"]:
                savings.append(
                    {"load": load, "phase": phase, "eager to": name}
                    | {"measured saving_ns": eager["plain_ns"] - values["plain_ns"]}
                    | {"exposed less_ns": (eager["exposed_ns"] or 0) - (values["exposed_ns"] or 0)}
                    | {"all exposed of eager_ns": eager["exposed_ns"]}
                    | _foretold(eager, values, is_full=name.startswith("full"))
                )
    table(f"{kind}: what graphs saved a step, and what the exposed tax had promised", savings)
    book.note("modes", f"{kind} savings", savings)


def _foretold(eager: dict[str, Any], values: dict[str, Any], *, is_full: bool) -> dict[str, Any]:
    """What was predicted from the eager steps, beside the step of a server whose steps are one graph."""
    told = eager.get("as one graph") or {}
    if "predicted_ns" not in told or not is_full:
        return {"predicted_ns": None, "measured_ns": values["plain_ns"], "within": None}
    is_within = told["low_ns"] <= values["plain_ns"] <= told["high_ns"]
    return {"predicted_ns": told["predicted_ns"], "measured_ns": values["plain_ns"], "within": is_within}


def cost(book: Book, args: argparse.Namespace, work: Path) -> None:
    """Throughput and gaps between tokens without and with the plugin, in pairs."""
    is_gpu = args.device != "cpu"
    settings: dict[str, tuple[bool, dict[str, str]]] = {"off": (False, {}), "on": (True, {})}
    if is_gpu:
        settings |= {
            "timing alone": (True, {"TAXBREAK_ENABLED": "false"}),  # the profiler is never started
            "on, TEARDOWN_CUPTI=1": (True, {"TEARDOWN_CUPTI": "1"}),
        }
    rounds = 8 if is_gpu else 2
    names = [f"round {n}" for n in range(rounds)]
    if any(name not in book.stages.get("cost", {}) for name in (*names, "recorded")):
        with Processes(work / "cost") as processes:
            model = write_model("llama", work / "cost-model", is_tiny=args.tiny)
            servers = {
                name: start(
                    processes, f"cost-{index}", model, flags=_GRAPHS["full" if is_gpu else "eager"], env=env,
                    is_plugged=is_plugged, is_gpu=is_gpu,
                )
                for index, (name, (is_plugged, env)) in enumerate(settings.items())
            }  # fmt: skip
            for name, server in list(servers.items()):
                try:
                    server.wait().send(_sized(_COST_LOADS[0], args), seed=99)
                except ProcessError as error:  # a setting that vLLM or CUPTI does not bear is itself a finding
                    book.note("cost", f"{name} did not start", str(error)[-1000:])
                    del servers[name]
            for number, name in enumerate(names):
                book.case("cost", name, partial(_round, args, servers, number))
            book.case("cost", "recorded", partial(_recorded, servers))
    _show_cost(book, names, list(settings))


def _round(args: argparse.Namespace, servers: dict[str, Server], number: int) -> dict[str, Any]:
    order = list(servers)
    order = order[number % len(order) :] + order[: number % len(order)]  # nobody always comes first
    return {
        load.name: {
            name: servers[name].send(_sized(load, args), seed=number).figures(_sized(load, args)) for name in order
        }
        for load in _COST_LOADS
    }


def _recorded(servers: dict[str, Server]) -> dict[str, Any]:
    """What each server's samples took: the bracket around a step, and how much longer the step was."""
    found = {}
    for name, server in servers.items():
        if not server.spool.exists():
            continue
        infos = [capture.read_info() for capture in spool_of(server).captures()]
        stalls = stalls_ns(infos)
        if infos:
            found[name] = {
                "captures": len(infos), "bracket_ns": median(i.overhead_ns for i in infos),
                "bracket_max_ns": max(i.overhead_ns for i in infos),
                "stall_ns": median(stalls) if stalls else None, "async": sum(i.async_output for i in infos),
            }  # fmt: skip
    return found


def _show_cost(book: Book, rounds: list[str], names: list[str]) -> None:
    known = [book.stages.get("cost", {}).get(name) for name in rounds]
    known = [found for found in known if found and "error" not in found]
    rows = []
    for load in _COST_LOADS if known else ():
        for name in names:
            # a server that died in a round, as one may under a setting, has no figures there
            pairs = [
                (own, found[load.name]["off"])
                for found in known
                if (own := found[load.name].get(name)) and "tpot_ns" in own and "tpot_ns" in found[load.name]["off"]
            ]
            row: dict[str, Any] = {"load": load.name, "plugin": name, "rounds": len(pairs)}
            for key in ("tokens_per_s", "tpot_ns", "itl_ns", "itl_p99_ns", "itl_max_ns"):
                row[key] = median(own[key] for own, _ in pairs) if pairs else None
            for key in ("tokens_per_s", "tpot_ns"):
                ratios = sorted(own[key] / off[key] for own, off in pairs)
                row[f"{key.removesuffix('_ns')} / off"] = median(ratios) if pairs else None
                row[f"{key.removesuffix('_ns')} range"] = f"{ratios[0]:.3f}-{ratios[-1]:.3f}" if pairs else None
            rows.append(row)
    table("cost in pairs: each round sends the same load to every server in turn", rows)
    book.note("cost", "summary", rows)
    recorded = book.stages.get("cost", {}).get("recorded") or {}
    table(
        "recorded steps", [{"plugin": name} | row for name, row in recorded.items()] if "error" not in recorded else []
    )


def _sized(load: Load, args: argparse.Namespace) -> Load:
    return load.tiny() if args.tiny else load


_STAGES: dict[str, Callable[[Book, argparse.Namespace, Path], object]] = {
    "live": live,
    "floors": floors,
    "truth": truth,
    "modes": modes,
    "cost": cost,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the stages asked for; 3 where the time was over before the last case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stage", dest="stages", action="append", choices=tuple(_STAGES))
    parser.add_argument("--all", action="store_true", help="every stage")
    parser.add_argument(
        "--model", dest="models", action="append", choices=("llama", "moe"), help="for modes; default both"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny models, little load")
    parser.add_argument("--seconds", type=float, default=480.0, help="begin no case after this long")
    parser.add_argument("--again", action="store_true", help="measure again what failed before")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the servers' logs there")
    args = parser.parse_args(arguments)
    args.stages = list(_STAGES) if args.all else args.stages or parser.error("give --stage or --all")
    args.models = args.models or ["llama", "moe"]
    args.out.mkdir(parents=True, exist_ok=True)
    child_environment()
    book = Book(args.out / "gpu_serving.json", seconds=args.seconds)
    if args.again:
        book.forget_failures()
    with tempfile.TemporaryDirectory(prefix="tb-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        if (args.out / "baselines.jsonl").exists():
            with Baselines(work / "baselines.sqlite3") as store:
                store.take(args.out / "baselines.jsonl")
        try:
            for name in args.stages:
                print(f"\n== {name}", flush=True)
                _STAGES[name](book, args, work)
        finally:
            if args.logs:
                args.logs.mkdir(parents=True, exist_ok=True)
                for log in work.glob("*/*.log"):
                    shutil.copyfile(log, args.logs / log.name)
    if book.left:
        print(f"\nthe time is over; left for the next run: {', '.join(book.left)}")
    return 3 if book.left else 0


if __name__ == "__main__":
    sys.exit(main())
