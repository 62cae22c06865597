"""One flag on a live vLLM server gives a breakdown: from real requests to Prometheus, the API and the command line."""

import gzip
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from taxbreak_vllm import Breakdown, analyze
from taxbreak_vllm.cli.client import control_server
from taxbreak_vllm.demo.load import ROUND, send
from taxbreak_vllm.demo.servers import RunningServer, start_sidecar, start_vllm
from taxbreak_vllm.iterations.account import Turns
from taxbreak_vllm.iterations.rows import UNKNOWN, Column
from taxbreak_vllm.iterations.window import NUM_TURNS, read_window
from taxbreak_vllm.service.results.window import MAX_LISTED_STEPS
from taxbreak_vllm.spool.layout import STEP
from taxbreak_vllm.spool.spool import Spool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
PHASES = ("prefill", "decode")
MIN_STEPS = 5
FIRST_SEED = 1
WITHOUT_REPLAY = {"TAXBREAK_REPLAY": "false"}  # so that what a trace alone cannot tell stays untold


@dataclass
class Live:
    """A server with the flag, its spool, and the sidecar that watches it."""

    vllm: RunningServer
    sidecar: RunningServer
    spool: Spool

    def get(self, path, **query):
        return httpx.get(self.sidecar.url + path, params=query, timeout=30.0).raise_for_status()

    def breakdown(self, phase):
        return Breakdown.from_json(self.get("/v1/taxbreak/breakdown", phase=phase).content)

    def metrics(self):
        families = text_string_to_metric_families(self.get("/metrics").text)
        return [sample for family in families for sample in family.samples]

    def settle(self):
        """Wait until every capture of the spool is analyzed and counted."""

        def is_settled():
            recorded = [capture.is_analyzed for capture in self.spool.captures()]
            return all(recorded) and value(self.metrics(), "sampled_steps_total") == len(recorded)

        self.sidecar.process.wait_until(is_settled, "done with all captures", timeout_s=300)


def value(samples, name, **labels):
    """Add the samples of that name that carry these labels; None where there is none."""
    found = [s.value for s in samples if s.name == f"taxbreak_{name}" and labels.items() <= s.labels.items()]
    return sum(found) if found else None


@pytest.fixture(scope="module")
def live(commands, tiny_llama):
    """All of it started from the command line, as a user would."""
    spool = commands.folder / "spool"
    env = {"TAXBREAK_SPOOL": str(spool), "TAXBREAK_SAMPLE_EVERY": "10", "TAXBREAK_SPOOL_MAX_CAPTURES": "10000"}
    env |= {"TAXBREAK_OVERHEAD_BUDGET_RATIO": "1", "TAXBREAK_MAX_STALL_MS": "60000"}
    vllm = start_vllm(commands, tiny_llama, env=env)
    live = Live(
        vllm,
        start_sidecar(commands, spool, env=WITHOUT_REPLAY).wait(),
        Spool(spool, max_bytes=2**30, max_captures=10**6),
    )
    vllm.wait()
    seeds = iter(range(FIRST_SEED, 10**6))

    def is_enough():
        send(vllm.url, "tiny-llama", seed=next(seeds))
        return all((value(live.metrics(), "sampled_steps_total", phase=p) or 0) >= MIN_STEPS for p in PHASES)

    vllm.process.wait_until(is_enough, "sampled in both phases", timeout_s=300)
    return live


@pytest.fixture
def settled(live):
    live.settle()
    return live


def test_steps_of_both_phases_are_timed_and_sampled(settled):
    samples = settled.metrics()

    for phase in PHASES:
        assert value(samples, "sampled_steps_total", phase=phase, model_name="tiny-llama") >= MIN_STEPS
        assert value(samples, "steps_total", phase=phase) > value(samples, "sampled_steps_total", phase=phase)
        assert value(samples, "step_seconds_sum", phase=phase) > 0


def test_the_time_between_a_workers_steps_is_accounted_for(settled):
    """Engine and worker are two processes here."""
    (loop,) = settled.get("/v1/taxbreak/iterations").json()["engines"]

    assert (loop["num_unjoined"], loop["num_lost"], loop.get("off_reason")) == (0, 0, None)
    assert loop["server_id"] == settled.get("/v1/taxbreak/status").json()["servers"][0]["server"]["server_id"]
    parts = loop["exposed_ns"] | loop["between_ns"]
    assert loop["worker_ns"] + sum(parts.values()) == loop["iterations_ns"]
    assert min(parts.values()) >= 0
    assert all(parts[name] > 0 for name in ("schedule", "dispatch", "update", "ipc_dispatch", "ipc_return", "no_work"))
    assert loop["unexplained_ratio"] < 0.05
    samples = settled.metrics()
    assert value(samples, "engine_exposed_seconds_total", part="schedule") > 0
    assert value(samples, "idle_between_steps_seconds_total", cause="ipc_return") > 0
    assert value(samples, "server_unexplained_ratio") < 0.05


def test_every_phase_has_an_account_of_its_own_and_together_they_are_the_whole(settled):
    (loop,) = settled.get("/v1/taxbreak/iterations").json()["engines"]
    phases = loop["phases"]

    assert phases.keys() >= set(PHASES)
    for sums in phases.values():
        parts = sums["exposed_ns"] | sums["between_ns"]
        assert sums["worker_ns"] + sum(parts.values()) == sums["total_ns"]
    for total, of_phase in (("num_iterations", "num"), ("iterations_ns", "total_ns"), ("worker_ns", "worker_ns")):
        assert sum(sums[of_phase] for sums in phases.values()) == loop[total]
    decode = phases["decode"]
    working_ns = decode["total_ns"] - decode["between_ns"]["no_work"]
    assert decode["exposed_ns"]["loop"] < 0.03 * working_ns


def test_a_window_of_its_loop_is_in_the_spool_and_told_by_the_command_line(live):
    (state,) = live.spool.engine_states()
    folder = live.spool.engine_dir(state.server_id, state.engine)
    seeds = iter(range(30_001, 10**6))

    def is_there():
        send(live.vllm.url, "tiny-llama", seed=next(seeds))
        return any(folder.glob("iterations-*"))

    live.vllm.process.wait_until(is_there, "done with a window", timeout_s=180)
    window = read_window(folder / "iterations-0.json.gz")
    done = subprocess.run(
        [sys.executable, "-m", "taxbreak_vllm.cli", "analyze", "--json", folder], capture_output=True, check=False
    )

    assert len(window.rows) == NUM_TURNS
    assert (window.rows[:, Column.WORKER_EXECUTE0] != UNKNOWN).all()
    assert (np.diff(window.rows[:, [Column.INPUT0, Column.END, Column.THREAD_CPU]], axis=0) > 0).all()
    found = Turns(window.rows).iterations()
    assert (sum(found.parts_ns.values()) + found.worker_ns == found.total_ns).all()
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert told["num_unjoined"] == 0
    assert told["phases"]["decode"]["unexplained_ratio"] < 0.03


@pytest.mark.parametrize("phase", PHASES)
def test_the_framework_tax_is_there_and_on_cpu_there_is_no_launch_floor(settled, phase):
    samples = settled.metrics()

    assert value(samples, "orchestration_seconds_total", component="delta_ft", phase=phase) > 0
    assert value(samples, "orchestration_seconds_total", component="delta_kt", phase=phase) == 0
    assert value(samples, "device_active_seconds_total", phase=phase) > 0
    assert 0 < value(samples, "hdbi", phase=phase) < 1


def test_what_this_machine_cannot_measure_has_no_series(settled):
    samples = settled.metrics()

    assert value(samples, "orchestration_seconds_total", component="delta_ct") is None
    assert value(samples, "exposed_orchestration_seconds_total", component="delta_ct") is None
    assert value(samples, "tklqt_seconds_total") is None
    assert value(samples, "launch_floor_seconds") is None
    assert value(samples, "replay_coverage_ratio", tier="replayed") is None


@pytest.mark.parametrize("phase", PHASES)
def test_the_api_tells_what_the_metrics_tell(settled, phase):
    samples, breakdown = settled.metrics(), settled.breakdown(phase)

    total = breakdown.total
    told = {
        ("orchestration_seconds_total", "delta_ft"): total.taxes.delta_ft_ns / 1e9,
        ("orchestration_seconds_total", "delta_kt"): total.taxes.delta_kt_ns / 1e9,
        ("exposed_orchestration_seconds_total", "delta_ft"): total.exposed.delta_ft_ns / 1e9,
        ("device_active_seconds_total", ""): total.device.active_ns / 1e9,
        ("device_idle_seconds_total", ""): total.device.idle_ns / 1e9,
        ("sampled_output_tokens_total", ""): total.batch.output_tokens,
        ("kernels_total", ""): total.kernels,
        ("hdbi", ""): total.hdbi,
    }
    if len(breakdown.steps) < MAX_LISTED_STEPS:
        told["sampled_steps_total", ""] = len(breakdown.steps)
    scraped = {
        (name, component): value(samples, name, phase=phase, **({"component": component} if component else {}))
        for name, component in told
    }
    assert scraped == pytest.approx(told, rel=1e-9)


def test_answers_are_byte_for_byte_those_of_a_server_without_the_flag(live, answers, plain_answers):
    assert answers(live.vllm) == plain_answers


def test_no_time_of_any_capture_is_lost_or_counted_twice(settled):
    captures = settled.spool.captures()
    assert len(captures) >= 2 * MIN_STEPS

    for capture in captures:
        breakdown = analyze(capture.path)
        for step in (*breakdown.steps, breakdown.total):
            host, device, exposed = step.host, step.device, step.exposed
            assert step.window_ns == sum(getattr(host, part) for part in host.__dataclass_fields__)
            assert device.window_ns == device.active_ns + device.other_active_ns + device.idle_ns
            assert device.idle_ns == sum(getattr(device.idle, part) for part in device.idle.__dataclass_fields__)
            assert device.idle.host_ns == sum(getattr(exposed, part) for part in exposed.__dataclass_fields__)


def test_the_trace_shows_the_step_that_the_worker_timed(settled):
    captures = [(capture.read_info(), analyze(capture.path)) for capture in settled.spool.captures()]

    assert all(info.phase == step.phase for info, breakdown in captures for step in breakdown.steps)
    assert all(len(breakdown.steps) == 1 for _, breakdown in captures)
    ratio = statistics.median(breakdown.steps[0].window_ns / info.window_ns for info, breakdown in captures)
    assert ratio == pytest.approx(1, abs=0.1)


def test_a_capture_asked_for_returns_within_seconds(live, requests_under_way):
    command = [sys.executable, "-m", "taxbreak_vllm.cli", "capture", "--url", live.sidecar.url]

    with requests_under_way(live.vllm):
        done = subprocess.run(
            [*command, "--steps", "4", "--phase", "decode", "--json"], capture_output=True, timeout=240, check=False
        )
        done_unix_ns = time.time_ns()

    assert done.returncode == 0, done.stderr.decode()
    assert [step.phase for step in Breakdown.from_json(done.stdout).steps] == ["decode"] * 4
    assert json.loads(done.stdout)["advice"]["verdict"] in {"act", "conditional", "no action", "withheld"}
    (request,) = live.get("/v1/taxbreak/captures").json()["captures"]
    # without the start of the command itself; seconds on a quiet machine
    assert done_unix_ns - request["created_unix_ns"] < 60 * 10**9


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not there: apt-get install prometheus")
@pytest.mark.nightly
def test_every_query_of_the_dashboards_finds_data(live, requests_under_way):
    """On what one server tells; what GPUs, losses and several models add, tests/dashboards has."""
    command = [sys.executable, str(ROOT / "dashboards" / "check.py"), "--url", live.sidecar.url, "--json"]

    with requests_under_way(live.vllm):
        done = subprocess.run(command, capture_output=True, timeout=180, check=False)

    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)["queries"]
    assert {query["dashboard"] for query in found if query["values"]} == {query["dashboard"] for query in found}


def _control(live, **change):
    return control_server(live.sidecar.url, timeout_s=60, **change)


def test_recording_is_switched_off_while_the_server_is_idle_and_on_while_it_is_busy(live, requests_under_way):
    off = _control(live, enabled=False)
    num_captures = len(live.spool.captures())
    send(live.vllm.url, "tiny-llama", seed=20_001)
    asked = httpx.post(live.sidecar.url + "/v1/taxbreak/captures", json={"steps": 1}, timeout=30.0)

    assert [(worker.enabled, worker.off_reason) for worker in off.workers] == [(False, "disabled")]
    assert len(live.spool.captures()) == num_captures
    assert asked.status_code == 503

    with requests_under_way(live.vllm):
        on, again = (_control(live, enabled=True, sample_every=20) for _ in range(2))
        live.vllm.process.wait_until(
            lambda: len(live.spool.captures()) > num_captures, "recording again", timeout_s=180
        )
    assert [(worker.enabled, worker.sample_every) for worker in on.workers] == [(True, 20)]
    assert again.workers[0].enabled
    assert again.control.sample_every == 20


def test_recording_that_cannot_keep_to_its_budget_turns_itself_off_and_can_be_turned_on_again(live, requests_under_way):
    (before,) = _control(live, overhead_budget_ratio=1e-9).workers
    assert before.enabled

    with requests_under_way(live.vllm):
        live.vllm.process.wait_until(lambda: not _control(live).workers[0].enabled, "off by itself", timeout_s=180)
    assert _control(live).workers[0].off_reason == "overhead"
    assert live.vllm.process.log.read_text().count("recording cannot be kept to") == 1

    (after,) = _control(live, overhead_budget_ratio=1.0, enabled=True, sample_every=10).workers
    assert (after.enabled, after.off_reason) == (True, None)


def test_the_command_line_tells_how_each_worker_records(live):
    command = [sys.executable, "-m", "taxbreak_vllm.cli", "control", "--url", live.sidecar.url]

    done = subprocess.run([*command, "--json"], capture_output=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr.decode()
    assert [worker["rank"] for worker in json.loads(done.stdout)["workers"]] == [0]


def test_a_sidecar_that_starts_again_counts_nothing_twice_and_loses_nothing(settled, commands):
    before = {p: value(settled.metrics(), "sampled_steps_total", phase=p) for p in PHASES}
    settled.sidecar.process.stop()

    settled.sidecar = start_sidecar(commands, settled.spool.root, env=WITHOUT_REPLAY, name="sidecar-again").wait()

    settled.settle()
    assert {p: value(settled.metrics(), "sampled_steps_total", phase=p) for p in PHASES} == before


def test_the_spool_holds_no_prompt_and_only_its_owner_may_enter(settled):
    prompts = [prompt for kind in ROUND for prompt in kind.prompts(FIRST_SEED)]

    assert settled.spool.root.stat().st_mode & 0o077 == 0
    for capture in settled.spool.captures():
        assert all(file.stat().st_mode & 0o077 == 0 for file in capture.path.iterdir())
        stored = gzip.decompress(capture.trace_path.read_bytes()).decode() + (capture.path / STEP).read_text()
        assert not any(prompt in stored for prompt in prompts)
