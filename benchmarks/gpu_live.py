"""Two stages of `gpu_serving.py`: a server as a user would turn recording on, and what a recording of it is worth.

`live` asks whether recording is still on after all its requests, and what it held up. `truth` delays the engine's loop
by a known time, and holds recordings of three steps against one long recording of the same requests by vLLM's own
profiler.
"""

import argparse
import http.client
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from gpu_book import Book, is_recovered, table
from gpu_captures import breakdowns, captures_of, decomposed, keep, settled, spool_of, stalls_ns, state_of
from gpu_servers import Heard, Load, Server, start, write_model

from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import Control
from taxbreak_vllm.taxes.analyze import analyze

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from rig.knobs import Knobs  # noqa: E402 - after the path
from rig.plugins import python_path  # noqa: E402

_ALL = Load("300 requests", 300, 32, 128, 96)
_MORE = Load("100 requests, recorded often", 100, 32, 128, 96)
_ONE = Load("one request", 1, 1, 16, 384)
_SAME = Load("decode", 16, 16, 16, 128)
_LONG = Load("decode", 16, 16, 16, 48)
_DELAY_NS = 1_000_000
_MIN_GAPS = 8


def live(book: Book, args: argparse.Namespace, work: Path) -> None:
    """Recording as a user would turn it on: is it on at the end, what is whole, what does it hold up, what stays?"""
    if not _knows(book, "live", "llama"):
        with Processes(work / "live") as processes:
            model = write_model("llama", work / "live-model", is_tiny=args.tiny)
            env = {"PYTHONPATH": _installed(work / "plugin")}
            if args.device == "cpu":
                env["TAXBREAK_SAMPLE_EVERY"] = "50"  # of few steps
            server = start(processes, "live", model, env=env, is_gpu=args.device != "cpu")
            book.case("live", "llama", partial(_live, args, work, server))
    found = book.stages.get("live", {}).get("llama") or {}
    if "phases" in found:
        table("recording on a live server", [{"what": name, "seen": told} for name, told in _told(found)])
        shown = ("captures", "hdbi null", "plain_ns", "window_ns", "hdbi", "exposed_ns", "bracket_ns", "dilation")
        rows = [{"step": name} | {key: row[key] for key in shown} for name, row in found["phases"].items()]
        table("what it recorded", rows)


def _live(args: argparse.Namespace, work: Path, server: Server) -> dict[str, Any]:
    server.wait()
    plain = server.send(_sized(_ONE, args), seed=1)
    heard = [server.send(_sized(_ALL, args), seed=2)]
    as_started = state_of(server, later_than_ns=heard[0].ended_unix_ns)
    spool, server_id = spool_of(server), as_started.server.server_id
    often = Control(control_id="often", sample_every=20, overhead_budget_ratio=0.5)
    spool.put_control(server_id, often)
    heard.append(server.send(_sized(_MORE, args), seed=3))
    captures = settled(server)
    at_last = state_of(server, later_than_ns=heard[1].ended_unix_ns)
    spool.put_control(server_id, Control(control_id="off", enabled=False))
    state_of(server, later_than_ns=at_last.updated_unix_ns)
    after = server.send(_sized(_ONE, args), seed=1)
    ended = state_of(server, later_than_ns=after.ended_unix_ns)
    found = breakdowns(work, captures)
    infos = [capture.read_info() for capture in captures]
    groups = captures_of(server, heard[0].began_unix_ns, heard[1].ended_unix_ns)
    asked = sum(
        len(own.arrivals_ns) * load.output
        for own, load in zip(
            (plain, *heard, after), (_sized(each, args) for each in (_ONE, _ALL, _MORE, _ONE)), strict=True
        )
    )
    stalls = stalls_ns(infos)
    first_ns = min((info.started_unix_ns for info in infos), default=None)
    kept = [keep(args.out, group[len(group) // 2], f"live-{phase}-{mode}") for (phase, mode), group in groups.items()]
    return {
        "requests": sum(len(own.arrivals_ns) for own in heard),
        "failed": sum(len(own.failed) for own in heard),
        "recording is on": as_started.enabled,
        "off_reason": as_started.off_reason or at_last.off_reason,
        "recordings as started": as_started.num_samples,
        "recordings": at_last.num_samples,
        "whole": sum(step.hdbi is not None for breakdown in found for step in breakdown.steps),
        "sessions": at_last.num_sessions,
        "device records": at_last.num_device_records,
        "tokens asked": asked,
        "tokens counted": ended.num_sampled,
        "stall_ns": median(stalls) if stalls else None,
        "stall_max_ns": max(stalls) if stalls else None,
        "CUPTI attached": ended.cupti_attached,
        "CUPTI version": ended.cupti_version,
        "token before the first recording_ns": _cadence_ns(plain, before_unix_ns=first_ns),
        "token after the last_ns": _cadence_ns(after),
        "dropped": dict(at_last.dropped),
        "notes": list(ended.notes),
        "kept": kept,
        "phases": {f"{phase} {mode}": decomposed(work, group) for (phase, mode), group in groups.items()},
    }


def _told(found: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in found.items():
        if name.endswith("_ns") and value is not None:
            yield name.removesuffix("_ns"), f"{value / 1e6:.2f} ms"
        elif not isinstance(value, dict | list):
            yield name, value


def _cadence_ns(heard: Heard, *, before_unix_ns: int | None = None) -> float | None:
    """Return the median gap between what clients received, up to a time; None of too few."""
    until_ns = None if before_unix_ns is None else heard.began_ns + before_unix_ns - heard.began_unix_ns
    gaps = [
        later - earlier
        for arrivals in heard.arrivals_ns
        for earlier, later in pairwise(arrivals)
        if until_ns is None or later < until_ns
    ]
    return median(gaps) if len(gaps) >= _MIN_GAPS else None


def truth(book: Book, args: argparse.Namespace, work: Path) -> None:
    """A known delay of the engine's loop, and recordings of three steps beside a long one of the same requests."""
    if not (_knows(book, "truth", "engine loop") and _knows(book, "truth", "long recording")):
        with Processes(work / "truth") as processes:
            model = write_model("llama", work / "truth-model", is_tiny=args.tiny)
            knobs = Knobs(work / "knobs")
            theirs = {"profiler": "torch", "torch_profiler_dir": str(work / "theirs")}
            theirs |= {"torch_profiler_with_stack": False, "ignore_frontend": True}
            server = start(
                processes,
                "truth",
                model,
                flags=("--enforce-eager", "--profiler-config", json.dumps(theirs)),
                env={
                    "PYTHONPATH": os.pathsep.join((_installed(work / "plugin"), python_path(work / "rig"))),
                    "VLLM_PLUGINS": "taxbreak,slow_places",
                    "SLOW_PLACES": str(work / "knobs"),
                    "TAXBREAK_SAMPLE_EVERY": "8",
                    "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1",
                },
                is_gpu=args.device != "cpu",
            )
            book.case("truth", "engine loop", partial(_engine_loop, args, work, server, knobs))
            book.case("truth", "long recording", partial(_long, args, work, server, knobs))
    told = book.stages.get("truth", {})
    table("a delay of the engine's loop", [told["engine loop"]] if "rose_ns" in told.get("engine loop", {}) else [])
    table("three-step recordings and a long one of the same requests", told.get("long recording", {}).get("rows", []))


def _engine_loop(args: argparse.Namespace, work: Path, server: Server, knobs: Knobs) -> dict[str, Any]:
    server.wait().send(_sized(_SAME, args), seed=9)
    busy_ns = {}
    for delay_ns in (0, _DELAY_NS):
        knobs.turn(schedule=delay_ns)
        heard = server.send(_sized(_SAME, args), seed=1)
        steps = _decode_steps(work, server, heard)
        busy_ns[delay_ns] = median(
            sum(part.busy_ns for part in step.iteration.engine.values()) for step in steps if step.iteration is not None
        )
    knobs.turn()
    rose_ns = busy_ns[_DELAY_NS] - busy_ns[0]
    return {"delay": "schedule", "injected_ns": _DELAY_NS, "rose_ns": rose_ns} | {
        "recovered": is_recovered(rose_ns, _DELAY_NS)
    }


def _long(args: argparse.Namespace, work: Path, server: Server, knobs: Knobs) -> dict[str, Any]:
    knobs.turn()
    heard = server.send(_sized(_LONG, args), seed=1)
    short = _decode_steps(work, server, heard)
    _post(server, "/start_profile")
    server.send(_sized(_LONG, args), seed=1)
    _post(server, "/stop_profile")
    (trace,) = (path for path in (work / "theirs").rglob("*.json*") if path.stat().st_size)
    long = [step for step in analyze(trace).steps if step.phase is Phase.DECODE]
    rows = []
    for name, read in _FIGURES.items():
        own, other = (_median(read, steps) for steps in (short, long))
        ratio = own / other if own is not None and other else None
        rows.append(
            {"figure": name, "three steps": own, "long": other, "ratio": ratio}
            | {"within 3 %": ratio is not None and abs(ratio - 1) <= 0.03}
        )
    return {"rows": rows, "steps": [len(short), len(long)]}


_FIGURES: dict[str, Callable[[StepBreakdown], float | None]] = {
    "HDBI": lambda step: step.hdbi,
    "idle share": lambda step: step.device.idle_ns / step.device.window_ns if step.device.window_ns else None,
    "exposed share": lambda step: step.device.idle.host_ns / step.device.window_ns if step.device.window_ns else None,
}


def _median(read: Callable[[StepBreakdown], float | None], steps: list[StepBreakdown]) -> float | None:
    known = [value for value in map(read, steps) if value is not None]
    return median(known) if known else None


def _decode_steps(work: Path, server: Server, heard: Heard) -> list[StepBreakdown]:
    groups = captures_of(server, heard.began_unix_ns, heard.ended_unix_ns)
    captures = [capture for (phase, _), group in groups.items() if phase == "decode" for capture in group]
    return [step for breakdown in breakdowns(work, captures) for step in breakdown.steps]


def _post(server: Server, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", path)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status} {response.read(200)!r}")


def _installed(folder: Path) -> str:
    """Return a PYTHONPATH in which vLLM finds this checkout's plugins, installed or not."""
    try:
        distribution("taxbreak-vllm")
    except PackageNotFoundError:
        points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
        info = folder / "taxbreak_vllm-0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: taxbreak-vllm\nVersion: 0\n")
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in own.items()) for group, own in points.items()]
        (info / "entry_points.txt").write_text("".join(lines))
    return os.pathsep.join((str(folder), str(ROOT)))


def _sized(load: Load, args: argparse.Namespace) -> Load:
    """Return a load in a size for a rehearsal: steps enough that some are recorded."""
    if not args.tiny:
        return load
    return Load(load.name, min(load.requests, 24), min(load.clients, 4), min(load.prompt, 32), min(load.output, 48))


def _knows(book: Book, stage: str, name: str) -> bool:
    return name in book.stages.get(stage, {})
