"""Whether what a server's advice says comes true: each switch it can name is turned, on a real vLLM.

Each case of `switches` has a server and a load under which the advice should name a switch. The server is started so,
loaded, and asked for its advice; then it is started anew with the switch, loaded alike, and asked again. The table says
what the advice promised at most, by how much the part it is about fell, tokens per second before and after, and whether
the advice itself says that the change held. One server runs at a time, with a sidecar of its case.
Prints the table and writes `benchmarks/results/advice_switches.json`; where only some cases are run, what it holds of
the others stays. A server whose device is simulated (`tests/rig`) records no steps.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from machine import ROOT, describe_machine
from rich.console import Console
from rich.table import Table
from streams import Load, Seen, send
from switches import CASES, Case, Setup, Switch

from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import WORKER_EXTENSION, RunningServer, start_sidecar, start_vllm
from taxbreak_vllm.insight.server_evidence import PARTS, Part, ServerEvidence
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.frontend import Stage
from taxbreak_vllm.spool.spool import Spool

sys.path.append(str(ROOT / "tests"))
from rig.knobs import Knobs
from rig.plugins import python_path

RESULTS = Path(__file__).resolve().parent / "results" / "advice_switches.json"
_MACHINE_RULES = ("more-cpu", "more-cpu-for-api", "fewer-servers")
_WARM_S = 2.0
_COUNTED_S = 2.5  # what is counted once a second is then told
_ENV = {
    "VLLM_PLUGINS": "taxbreak",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TAXBREAK_SAMPLE_EVERY": "100",
    "TAXBREAK_OVERHEAD_BUDGET_RATIO": "0.02",
    "TAXBREAK_MAX_STALL_MS": "1000",
}
_SIMULATED = ("--worker-cls", "rig.simulated.Worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One start of a server under a load: what clients saw, what the advice said, each rule's part, and all parts."""

    seen: Seen
    advice: dict[str, Any]
    parts: dict[str, Part]
    iteration_ms: dict[str, float]
    request_ms: dict[str, float]
    host_ratio: dict[str, float | None]

    def at_most(self, rule: str) -> float | None:
        """Return the bound of a rule, None where it did not speak."""
        return next((one["at_most_ratio"] for one in self.advice["advice"] if one["rule"] == rule), None)

    def held(self, rule: str) -> str | None:
        """Return what the advice says of the change that this rule asked for."""
        return next((one["held"] for one in self.advice["outcomes"] if rule in one["rules"]), None)


def main() -> None:
    """Run the cases, print, write."""
    options = _options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    load_before, started_s = os.getloadavg()[0], time.monotonic()
    cases = [case for case in CASES if case.name in (options.only or [case.name])]
    found, failed = {}, {}
    for case in cases:
        try:
            found[case.name] = _measure(case, options.seconds)
        except (TaxbreakError, httpx.HTTPError, OSError, RuntimeError, BaseExceptionGroup) as error:
            failed[case.name] = f"{type(error).__name__}: {error}"
            _say(f"{case.name}: {failed[case.name]}")
    machine = describe_machine("vllm", "torch", "taxbreak-vllm")
    measured = {
        "commit": machine.pop("commit"),
        "load_1min": {"before": load_before, "after": os.getloadavg()[0]},
        "took_s": round(time.monotonic() - started_s),
    }
    told = {
        case.name: {
            "measured": measured,
            "rows": _rows(case, *found[case.name]),
            "runs": _runs(*found[case.name]),
        }
        for case in cases
        if case.name in found
    }
    _write(options.output, machine, told, failed)
    _print([row for case in told.values() for row in case["rows"]])
    sys.exit(1 if failed else 0)


def _runs(before: Run, after: dict[str, Run]) -> dict[str, Any]:
    return {name: asdict(run) for name, run in (("before", before), *after.items())}


def _write(path: Path, machine: dict[str, Any], told: dict[str, Any], failed: dict[str, str]) -> None:
    """Write what was found of each case beside what the file holds of those that were not run."""
    kept = json.loads(path.read_text())["cases"] if path.exists() else {}
    cases = {case.name: told.get(case.name) or kept.get(case.name) for case in CASES}
    result = {"machine": machine, "cases": {name: case for name, case in cases.items() if case}, "failed": failed}
    path.write_text(json.dumps(result, indent=1) + "\n")


def _measure(case: Case, seconds: float) -> tuple[Run, dict[str, Run]]:
    """Run one case: the server as it is, then once with each switch, which finds what the first left behind."""
    with tempfile.TemporaryDirectory(prefix="sw-") as folder, Processes(Path(folder)) as processes:
        os.environ["VLLM_CACHE_ROOT"] = f"{folder}/vllm"  # what vLLM finds out about a model's class, it does once
        model = write_tiny_llama(Path(folder) / "tiny-llama")
        left = Path(folder) / "spool"
        before = _run(processes, left, model, case.before, replace(case.load, seconds=seconds))
        _say(f"{case.name}: {before.seen.tokens_per_s:.0f} tokens/s, {_said(before)}")
        after = {}
        for number, switch in enumerate(case.switches):
            spool = Path(folder) / f"spool-{number}"
            shutil.copytree(left, spool)
            load = replace(switch.load or case.load, seconds=seconds)
            after[switch.name] = run = _run(processes, spool, model, switch.setup, load)
            _say(f"{case.name}, {switch.name}: {run.seen.tokens_per_s:.0f} tokens/s, {_said(run)}")
    return before, after


def _run(processes: Processes, spool: Path, model: Path, setup: Setup, load: Load) -> Run:
    sidecar = start_sidecar(processes, spool, name=f"sidecar-{time.time_ns()}").wait()
    server = _start(processes, spool, model, setup).wait()
    warm = replace(load, clients=4, rate=None, output_tokens=8, seconds=_WARM_S)
    asyncio.run(send(server.url, model.name, warm, seed=1))
    seen = asyncio.run(send(server.url, model.name, load, seed=2))
    time.sleep(_COUNTED_S)
    told = httpx.get(f"{sidecar.url}/v1/taxbreak/advice", timeout=60).raise_for_status().json()
    evidence = _evidence(Spool(spool, max_bytes=2**30, max_captures=10**6))
    server.process.stop()
    sidecar.process.stop()
    worker_ms = evidence.engine.worker_ns / max(1, evidence.engine.num_iterations) / 1e6
    return Run(
        seen=seen,
        advice=told,
        parts={rule: evidence.part(rule) for rule in (*PARTS, *_MACHINE_RULES)},
        iteration_ms={"worker": worker_ms}
        | {str(label): evidence.exposed_ns(label) / 1e6 for label in (*EnginePart, *Between)},
        request_ms={str(stage): evidence.stages_ns(stage) / 1e6 for stage in Stage},
        host_ratio={found["phase"]: found["host_ratio"] for found in (told["serving"] or {}).get("phases", ())},
    )


def _start(processes: Processes, spool: Path, model: Path, setup: Setup) -> RunningServer:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, setup.cpus or allowed)  # what is started now may use no others
    try:
        env = {**_ENV, "TAXBREAK_SPOOL": str(spool), **setup.env}
        name, worker = f"vllm-{time.time_ns()}", WORKER_EXTENSION
        if setup.simulated is not None:
            env, worker = env | _simulate(processes.folder / f"{name}-device", setup.simulated), _SIMULATED
        return start_vllm(processes, model, flags=(*worker, *setup.flags), env=env, name=name)
    finally:
        os.sched_setaffinity(0, allowed)


def _simulate(folder: Path, knobs_ns: Mapping[str, int]) -> dict[str, str]:
    """Make a folder of a simulated device; return what its server's environment has more."""
    plugins = python_path(folder / "plugins")
    Knobs(folder / "knobs").turn(**knobs_ns)
    return {
        "PYTHONPATH": plugins,
        "SIMULATED": str(folder),
        "VLLM_PLUGINS": "taxbreak,simulated",
        "TAXBREAK_ENABLED": "false",
    }


def _evidence(spool: Spool) -> ServerEvidence:
    """Return what the server that started last tells."""
    newest = max(spool.states(), key=lambda state: state.started_unix_ns)
    name = newest.server.server_id
    (engine,) = (state for state in spool.engine_states() if state.server_id == name)
    workers = [state for state in spool.states() if state.server.server_id == name]
    frontends = [state for state in spool.frontend_states() if state.server_id == name]
    return ServerEvidence(engine=engine, workers=workers, frontends=frontends)


def _rows(case: Case, before: Run, after: dict[str, Run]) -> list[dict[str, Any]]:
    return [_row(case, switch, rule, before, after[switch.name]) for switch in case.switches for rule in switch.rules]


def _row(case: Case, switch: Switch, rule: str, before: Run, after: Run) -> dict[str, Any]:
    old, new = before.parts.get(rule), after.parts.get(rule)
    return {
        "case": case.name,
        "condition": case.condition,
        "rule": rule,
        "switch": switch.name,
        "at_most": before.at_most(rule),
        "at_most_after": after.at_most(rule),
        "part_before_ms": old and old.spent_ns / 1e6,
        "part_after_ms": new and new.spent_ns / 1e6,
        "whole_before_ms": old and old.whole_ns / 1e6,
        "whole_after_ms": new and new.whole_ns / 1e6,
        "tokens_per_s_before": before.seen.tokens_per_s,
        "tokens_per_s_after": after.seen.tokens_per_s,
        "e2e_before_ms": before.seen.e2e_ms,
        "e2e_after_ms": after.seen.e2e_ms,
        "held": after.held(rule),
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    out = Console(width=170)
    table = Table(title="each switch that advice names, turned", title_justify="left")
    for title in ("case", "rule", "switch", "at most", "its part, ms", "of, ms", "tokens/s", "E2E p50 ms", "held"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            row["case"],
            row["rule"],
            row["switch"],
            "silent" if row["at_most"] is None else f"{row['at_most']:.0%}",
            _change(row["part_before_ms"], row["part_after_ms"]),
            _change(row["whole_before_ms"], row["whole_after_ms"]),
            _change(row["tokens_per_s_before"], row["tokens_per_s_after"]),
            _change(row["e2e_before_ms"], row["e2e_after_ms"]),
            row["held"] or "not told",
        )
    out.print(table)


def _change(before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else f"{before:.4g} → {after:.4g}"


def _said(run: Run) -> str:
    named = ", ".join(f"{one['rule']} {one['at_most_ratio']:.0%}" for one in run.advice["advice"])
    return f"advice: {named or run.advice['verdict']}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="some cases")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long a server is loaded")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
