"""A spool, results and captures whose trace is the step it stands for, so that a fake analysis only has to read it."""

import gzip
import re
import sys
import time
from dataclasses import replace
from functools import cache
from itertools import count

import msgspec
import pytest
from fastapi import routing

from taxbreak_vllm.model.breakdown import (
    Breakdown,
    Calibration,
    Coverage,
    DeviceTime,
    ExposedTax,
    FamilyShare,
    HostTime,
    IdleTime,
    Source,
    StepBreakdown,
    Taxes,
    Tier,
    TopRow,
    hdbi,
)
from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.step import STEP_BUCKETS_NS, Batch, GraphMode, Phase, Server, StepHistogram, StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.processes.analyzer import Analyzer
from taxbreak_vllm.service.processes.supervisor import analyzer_command as command_of
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

NOW_NS = 1_700_000_000 * 10**9
SERVER = Server(server_id="vllm-a", engine="0", rank=0, model_name="tiny", device_type="cuda", torch="2.13")


class Clock:
    """Unix time that only a test moves."""

    def __init__(self):
        self.ns = NOW_NS

    def __call__(self):
        return self.ns

    def sleep_s(self, seconds):
        self.ns += int(seconds * 10**9)


@pytest.fixture(scope="session", autouse=True)
def models_of_answers():
    """Let all apps of the tests share FastAPI's models of answers: to build them takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "create_model_field", cache(routing.create_model_field))
        yield


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def settings(tmp_path):
    return Settings(spool=tmp_path / "spool")


@pytest.fixture
def spool(settings):
    return Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)


@pytest.fixture
def results(settings):
    with Results(settings.results_path) as results:
        yield results


@pytest.fixture
def damage_results(settings):
    """Overwrite a page of the results, so that they open and some of them cannot be read."""

    def damage():
        with Results(settings.results_path) as results:
            (page,) = results._db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'captures'").fetchone()
            (page_bytes,) = results._db.execute("PRAGMA page_size").fetchone()
        with open(settings.results_path, "r+b") as file:
            file.seek((page - 1) * page_bytes)
            file.write(b"junk" * (page_bytes // 4))

    return damage


@pytest.fixture
def make_step():
    """A step on a GPU; every duration is a small multiple of `scale`, so that sums can be checked by eye."""

    def make(scale=1, *, phase=Phase.DECODE, is_cpu=False):
        taxes = Taxes(
            delta_ft_ns=60 * scale,
            delta_ct_ns=None if is_cpu else 20 * scale,
            delta_kt_ns=0 if is_cpu else 10 * scale,
            orchestration_ns=60 * scale if is_cpu else 90 * scale,
        )
        return StepBreakdown(
            name="step",
            phase=phase,
            graph_mode=GraphMode.NONE,
            batch=Batch(requests=1, prompt_tokens=0, output_tokens=4),
            window_ns=200 * scale,
            host=HostTime(
                python_ns=120 * scale,
                library_ns=30 * scale,
                launch_ns=20 * scale,
                runtime_ns=20 * scale,
                blocked_ns=10 * scale,
            ),
            device=DeviceTime(
                window_ns=200 * scale,
                active_ns=110 * scale,
                kernel_sum_ns=110 * scale,
                idle_ns=90 * scale,
                idle=IdleTime(host_ns=50 * scale, blocked_ns=0, queue_ns=30 * scale, edge_ns=10 * scale),
            ),
            taxes=taxes,
            exposed=ExposedTax(delta_ft_ns=40 * scale, delta_ct_ns=0, delta_kt_ns=4 * scale, other_ns=6 * scale),
            hdbi=hdbi(110 * scale, taxes.orchestration_ns),
            tklqt_ns=None if is_cpu else 7 * scale,
            launches=None if is_cpu else 3,
            kernels=5,
            families={
                "gemm": FamilyShare(kernels=3, active_ns=100 * scale, launches=2),
                "norm": FamilyShare(kernels=2),
            },
            top=(
                TopRow(
                    op="aten::mm",
                    kernel="<b>nvjet & co</b>",
                    family="gemm",
                    i_lib=True,
                    count=3,
                    delta_ft_ns=60 * scale,
                    delta_ct_ns=taxes.delta_ct_ns,
                    delta_kt_ns=taxes.delta_kt_ns,
                    active_ns=110 * scale,
                    tier=Tier.TRACE,
                ),
            ),
        )

    return make


@pytest.fixture
def make_info(clock):
    def make(step_id, *, server=SERVER, phase=Phase.DECODE, capture_id=None):
        return StepInfo(
            step_id=step_id,
            step_index=0,
            server=server,
            phase=phase,
            batch=Batch(),
            graph_mode=GraphMode.NONE,
            started_unix_ns=clock(),
            window_ns=300,
            plain_window_ns=200,
            capture_id=capture_id,
        )

    return make


@pytest.fixture
def put(spool, make_info, make_step):
    """Put a capture of a step into the spool; `trace` replaces what its trace holds."""

    def put(step_id, scale=1, *, server=SERVER, phase=Phase.DECODE, capture_id=None, is_cpu=False, trace=None):
        data = msgspec.json.encode(make_step(scale, phase=phase, is_cpu=is_cpu)) if trace is None else trace
        info = make_info(step_id, server=server, phase=phase, capture_id=capture_id)
        spool.put(info, lambda path: path.write_bytes(gzip.compress(data)))
        return spool.find(step_id)

    return put


@pytest.fixture
def analyze():
    """The fake analysis."""

    def analyze(capture):
        info = capture.read_info()
        try:
            step = msgspec.json.decode(gzip.decompress(capture.trace_path.read_bytes()), type=StepBreakdown)
        except (OSError, msgspec.MsgspecError) as error:
            raise TraceFormatError(f"{capture.trace_path}: {error}") from error
        return Breakdown(
            source=Source(model_name=info.server.model_name, server_id=info.server.server_id),
            calibration=Calibration(dilation=info.window_ns / info.plain_window_ns),
            coverage=Coverage(kernels=step.kernels, replay={Tier.TRACE: 1.0}),
            steps=(step,),
            total=replace(step, name=None),
        )

    return analyze


@pytest.fixture
def record(results, put, analyze, make_info, clock):
    """Store analyzed steps of a server whose plain steps take that long, calibrated and covered."""

    numbers = count()

    def record(num, *, server=SERVER, plain_ns=200_000, phase=Phase.DECODE, requests=2, capture_id=None, forecasts=()):
        breakdown = analyze(put(f"template-{next(numbers)}", 1000, phase=phase))
        step = replace(breakdown.steps[0], batch=Batch(requests=requests, prompt_tokens=0, output_tokens=requests))
        for number in range(num):
            step_id = f"{server.server_id}-{phase}-{capture_id}-{number}"
            whole = replace(
                breakdown,
                source=replace(breakdown.source, device_type="cuda", server_id=server.server_id),
                calibration=Calibration(
                    dilation=200_000 / plain_ns, residual=0.0, state="calibrated", plain_ns=plain_ns + number
                ),
                coverage=replace(breakdown.coverage, linked=breakdown.coverage.kernels, events=99),
                steps=(step,),
                forecasts=forecasts,
            )
            info = make_info(step_id, server=server, phase=phase, capture_id=capture_id)
            results.add_step(step_id, info, whole, now_ns=clock())

    return record


@pytest.fixture
def make_state(clock):
    """A worker's state whose plain decode steps all took `step_ns`."""

    def make(*, num_steps=10, step_ns=300_000, server=SERVER, started_ns=NOW_NS, **fields):
        index = next(i for i, bound_ns in enumerate((*STEP_BUCKETS_NS, step_ns)) if step_ns <= bound_ns)
        buckets = tuple(num_steps * (i == index) for i in range(len(STEP_BUCKETS_NS) + 1))
        histogram = StepHistogram(
            phase=Phase.DECODE,
            graph_mode=GraphMode.FULL,
            num_steps=num_steps,
            sum_ns=num_steps * step_ns,
            bucket_counts=buckets,
        )
        known = {"started_unix_ns": started_ns, "updated_unix_ns": clock(), "enabled": True, "steps": (histogram,)}
        return WorkerState(server=server, **(known | fields))

    return make


@pytest.fixture
def start_sidecar(taxbreak, settings, until):
    """Run `taxbreak serve` with other settings; gives its address. It replays nothing unless told to."""
    started = []

    def start(**options):
        sidecar = taxbreak.start("serve", "--spool", settings.spool, "--port", 0, **{"replay": False} | options)
        started.append(sidecar)
        until(lambda: "\n" in sidecar.stderr or not sidecar.is_alive, timeout_s=60)
        (url,) = re.findall(r"http://[\d.:]+", sidecar.stderr)
        return url

    yield start
    for sidecar in started:
        sidecar.kill()
        sidecar.wait()


@pytest.fixture
def filled(spool, results, analyze, put, make_state, clock):
    """Fill spool and results as of now: a server that runs, analyzed steps of every phase, a failure."""
    clock.ns = time.time_ns()
    spool.put_state(make_state(updated_unix_ns=clock() + 3600 * 10**9, overhead_ns=1, serving_ns=10))
    for phase in Phase:
        put(f"step-{phase}", 10**6, phase=phase, is_cpu=phase is Phase.PREFILL)
    put("bad", trace=b"junk")
    Analyzer(spool, results, analyze, retention_ns=86400 * 10**9, now_ns=clock).turn()


FAKE_ANALYZER = """
import gzip, os, signal, sys, time
from pathlib import Path
import msgspec
from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.breakdown import Breakdown, Source, StepBreakdown
from taxbreak_vllm.service.processes.analyzer import main

def analyze(capture):
    data = gzip.decompress(capture.trace_path.read_bytes())
    with open(Path(__file__).with_name("begun"), "a") as begun:
        begun.write(capture.step_id + " ")
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGKILL)
    while data == b"hang":
        pass
    if data == b"slow":
        time.sleep(600)
    try:
        step = msgspec.json.decode(data, type=StepBreakdown)
    except msgspec.MsgspecError as error:
        raise TraceFormatError(str(error)) from error
    time.sleep(float(os.environ.get("ANALYSIS_S", "0")))
    return Breakdown(source=Source(), steps=(step,))

sys.exit(main(sys.argv[1:], load=lambda: analyze))
"""


@pytest.fixture
def analyzer_command(tmp_path, settings):
    """The command line of an analyzer process with a fake analysis, which notes what it began in the file `begun`."""
    script = tmp_path / "fake_analyzer.py"
    script.write_text(FAKE_ANALYZER)
    return [sys.executable, str(script), *command_of(settings)[3:]]


@pytest.fixture
def begun(tmp_path):
    """The step ids whose analysis began in an analyzer process, in order."""

    def read():
        path = tmp_path / "begun"
        return path.read_text().split() if path.exists() else []

    return read


@pytest.fixture
def until():
    """Wait for a condition, and fail where it does not come true in time."""

    def until(condition, *, timeout_s=90):
        deadline_s = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline_s, "not true in time"
            time.sleep(0.01)
        return found

    return until
