"""One live server goes through the faults of its disk, its spool, its sidecar and its neighbours, and answers as ever.

Each test brings one fault about, shows that the answers are those of a server without us, that the counter names the
reason and that nothing is counted twice, and puts the world right again: they may come in any order.
"""

import contextlib
import gzip
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.demo.load import Requests, send
from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, RunningServer, start_vllm
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.spool.layout import ANALYZED, STEP, TRACE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

DISK_BYTES = 64 * 2**20
LONG_ANSWER = Requests(num_requests=4, prompt_tokens=8, output_tokens=400, concurrency=4)
_SEEDS = iter(range(1, 10**6))


@dataclass
class Victim:
    """A server that is watched, on a disk that can be filled."""

    server: RunningServer
    server_id: str
    watched: object
    disk: Path
    is_mounted: bool
    first_answers: list[str]

    @property
    def root(self):
        return self.watched.spool.root

    def load(self):
        send(self.server.url, "tiny-llama", seed=next(_SEEDS))

    def load_until(self, condition, what):
        def is_true():
            self.load()
            return condition()

        self.watched.wait_until(is_true, what)

    def ask_for_steps(self, **body):
        """Ask for steps of this server; one killed a moment ago may still count as running."""
        url = f"{self.watched.sidecar.url}/v1/taxbreak/captures"
        return httpx.post(url, json={"server_id": self.server_id} | body, timeout=30.0).raise_for_status().json()

    def wait_for_drops(self, reason, *, before):
        self.watched.wait_until(lambda: self.watched.dropped(reason) > before, f"counting {reason}")

    def goes_on(self):
        """Show that steps are recorded, analyzed and counted as before the fault."""
        before = self.watched.value("sampled_steps_total")
        self.load_until(lambda: self.watched.value("sampled_steps_total") >= before + 4, "sampling again")
        self.watched.settle()

    def warnings(self):
        return [line for line in self.server.process.log.read_text().splitlines() if "taxbreak" in line]


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A small disk of its own, where we may mount one."""
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "taxbreak-test", str(folder)]
    try:
        is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    yield folder, is_mounted
    if is_mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def victim(disk, processes, tiny_llama, answers, sample_often, watch_spool):
    """The server starts while its spool cannot be made, and gets one later."""
    folder, is_mounted = disk
    a_file = folder / "a-file"
    a_file.touch()
    root = a_file / "spool"
    theirs = {"profiler": "torch", "torch_profiler_dir": str(processes.folder / "theirs")}
    # with stacks, or of seconds of steps, vLLM's export alone takes minutes
    theirs |= {"torch_profiler_with_stack": False, "ignore_frontend": True, "max_iterations": 50}
    flags = (*WORKER_EXTENSION, *ONE_PROCESS, "--profiler-config", json.dumps(theirs))
    server = start_vllm(processes, tiny_llama, env=sample_often | {"TAXBREAK_SPOOL": str(root)}, flags=flags).wait()
    first_answers = answers(server)

    a_file.unlink()
    root.mkdir(parents=True, mode=0o700)
    env = {"TAXBREAK_RESULTS": str(folder / "results.sqlite3")}  # to be deleted with the spool is another fault
    victim = Victim(server, "", watch_spool(processes, root, env=env), folder, is_mounted, first_answers)
    victim.goes_on()
    (state,) = victim.watched.spool.states()
    victim.server_id = state.server.server_id
    return victim


def test_a_server_that_starts_without_a_spool_answers_and_says_so_once_and_goes_on_once_it_has_one(
    victim, plain_answers
):
    assert victim.first_answers == plain_answers
    assert len([line for line in victim.warnings() if "cannot publish" in line]) == 1

    assert victim.watched.dropped("spool") > 0
    assert victim.watched.value("sampled_steps_total") > 0


def test_a_full_disk_costs_the_samples_and_nothing_else(victim, answers, plain_answers):
    if not victim.is_mounted:
        pytest.skip("a disk that may be filled has to be mounted, and only root may do that")
    before, stored = victim.watched.dropped("spool"), {capture.step_id for capture in victim.watched.spool.captures()}

    filler = _fill(victim.disk)
    told = answers(victim.server)
    victim.load()
    left = {capture.step_id for capture in victim.watched.spool.captures()}
    scraped = httpx.get(f"{victim.watched.sidecar.url}/metrics", timeout=30.0).status_code
    filler.unlink()

    assert told == plain_answers
    assert left == stored
    assert scraped == 200
    victim.wait_for_drops("spool", before=before)
    victim.goes_on()
    assert not [line for line in victim.warnings() if "Traceback" in line]


def _fill(disk):
    filler = disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return filler


def test_a_spool_that_becomes_unwritable_costs_the_samples_and_nothing_else(victim, answers, plain_answers):
    before = victim.watched.dropped("spool")

    away = victim.root.with_name("away")
    victim.root.rename(away)
    victim.root.touch()  # a file where the folder was: even root cannot write below it
    told = answers(victim.server)
    victim.load()
    victim.root.unlink()
    away.rename(victim.root)

    assert told == plain_answers
    victim.wait_for_drops("spool", before=before)
    victim.goes_on()


def test_a_spool_that_is_deleted_comes_back(victim, answers, plain_answers):
    before = victim.watched.value("sampled_steps_total")

    victim.watched.settle()  # a folder that is being written to cannot be deleted at one go
    shutil.rmtree(victim.root)

    assert answers(victim.server) == plain_answers
    victim.goes_on()
    assert victim.watched.value("sampled_steps_total") > before
    assert victim.root.stat().st_mode & 0o077 == 0


@pytest.mark.nightly
def test_garbage_in_the_spool_is_set_aside_and_counted_or_left_alone(victim, answers, plain_answers, tmp_path):
    victim.goes_on()
    source = victim.watched.spool.captures()[-1]
    before = victim.watched.dropped("analysis_failed")

    garbage = {}
    for number, (step, trace) in enumerate(
        [
            (b"", b""),
            (b"\x00" * 100, (source.path / TRACE).read_bytes()),
            ((source.path / STEP).read_bytes(), b"no gzip at all"),
            ((source.path / STEP).read_bytes(), gzip.compress(b'{"traceEvents": [')),
            ((source.path / STEP).read_bytes(), gzip.compress(b"{}")),
            ((source.path / STEP).read_bytes(), gzip.compress(b'{"traceEvents": [{"ph": "X", "ts": -1e300}]}')),
            (b'{"step_id": 1}', gzip.compress(b"[]")),
            ((source.path / STEP).read_bytes(), (source.path / TRACE).read_bytes()),  # a second copy of a good one
        ]
    ):
        path = source.path.with_name(f"garbage-{number}")
        path.mkdir()
        (path / STEP).write_bytes(step)
        (path / TRACE).write_bytes(trace)
        garbage[path.name] = path
    (victim.root / "a file").write_text("of somebody")
    (victim.root / "vllm-nobody" / "not a rank").mkdir(parents=True)
    (victim.root / "vllm-nobody" / "0").touch()
    (source.path.parent / "step.json").write_text("{")
    os.mkfifo(victim.root / "pipe")
    (source.path.parent / "loop").symlink_to(source.path.parent)
    outside = source.path.parent / "outside"
    outside.symlink_to(tmp_path)

    victim.watched.wait_until(
        lambda: victim.watched.dropped("analysis_failed") >= before + len(garbage), "done with the garbage"
    )
    assert answers(victim.server) == plain_answers
    assert all((path / ANALYZED).read_text().startswith("failed: ") for path in garbage.values())
    victim.goes_on()
    assert not list(tmp_path.iterdir())  # nobody followed the link
    (source.path.parent / "loop").unlink()
    outside.unlink()
    for path in garbage.values():
        shutil.rmtree(path)


def test_a_capture_cut_off_anywhere_is_never_read_as_a_whole_one(victim, tmp_path):
    """At every 1 KB of its length the analysis says in one line what is wrong."""
    victim.goes_on()
    source = min(victim.watched.spool.captures(), key=lambda capture: (capture.path / TRACE).stat().st_size)
    whole = (source.path / TRACE).read_bytes()
    shutil.copytree(source.path, tmp_path / "cut")

    assert len(whole) > 10 * 1024
    for length in range(0, len(whole), 1024):
        (tmp_path / "cut" / TRACE).write_bytes(whole[:length])
        with pytest.raises(TaxbreakError) as raised:
            analyze(tmp_path / "cut")
        assert len(str(raised.value).splitlines()) == 1
    (tmp_path / "cut" / TRACE).write_bytes(whole)
    assert len(analyze(tmp_path / "cut").steps) == 1


def test_truncated_captures_in_the_spool_are_counted_as_lost_and_not_as_steps(victim):
    victim.goes_on()
    source = victim.watched.spool.captures()[-1]
    whole = (source.path / TRACE).read_bytes()
    lost, sampled = victim.watched.dropped("analysis_failed"), victim.watched.value("sampled_steps_total")

    cuts = [source.path.with_name(f"cut-{length}") for length in range(0, len(whole), len(whole) // 8)][:8]
    for path in cuts:
        shutil.copytree(source.path, path, ignore=shutil.ignore_patterns(ANALYZED))
        (path / STEP).write_text((path / STEP).read_text().replace(source.step_id, path.name))
        (path / TRACE).write_bytes(whole[: int(path.name.removeprefix("cut-"))])
    victim.watched.settle()

    victim.watched.wait_until(
        lambda: victim.watched.dropped("analysis_failed") == lost + len(cuts), "done with the cut captures"
    )
    assert victim.watched.value("sampled_steps_total") == sampled
    for path in cuts:
        shutil.rmtree(path)


def _pids(*words):
    """Find the processes that have all these words on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (entry / "cmdline").read_bytes().decode().split("\0")
            if set(map(str, words)) <= set(command):
                found.append(int(entry.name))
    return found


@pytest.mark.nightly
def test_a_sidecar_killed_in_mid_analysis_counts_each_step_once_when_it_is_back(
    victim, processes, answers, plain_answers, watch_spool
):
    results = victim.disk / "results.sqlite3"
    (analyzer,) = _pids("taxbreak_vllm.service.processes.analyzer", victim.root)

    def is_caught_at_work():
        os.kill(analyzer, signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(results)) as db:
            if db.execute("SELECT count(*) FROM attempts").fetchone()[0] and victim.watched.spool.pending():
                return True
        os.kill(analyzer, signal.SIGCONT)
        victim.load()
        return False

    victim.watched.wait_until(is_caught_at_work, "in mid-analysis")
    # the command itself, not the one that guards it: what a kernel short of memory would end
    (sidecar, *_) = sorted(set(_pids("taxbreak_vllm.cli", "serve", victim.root)) - set(_pids("10.0")))
    for pid in (analyzer, sidecar):
        os.kill(pid, signal.SIGKILL)
    told = answers(victim.server)
    victim.watched.sidecar.process.stop()
    env = {"TAXBREAK_RESULTS": str(results)}
    victim.watched = watch_spool(processes, victim.root, env=env, name="sidecar-again")

    assert told == plain_answers
    victim.watched.settle()
    assert victim.watched.dropped("analysis_crashed") == 0
    victim.goes_on()


@pytest.mark.nightly
def test_a_clock_that_steps_back_under_the_sidecar_loses_no_step_and_counts_none_twice(
    victim, processes, answers, plain_answers, watch_spool
):
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        pytest.skip("needs libfaketime: apt-get install faketime")
    offset = processes.folder / "offset"
    offset.write_text("+0")
    results = {"TAXBREAK_RESULTS": str(victim.disk / "results.sqlite3")}
    fake = {"LD_PRELOAD": str(libraries[0]), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1"}
    victim.watched.settle()
    victim.watched.sidecar.process.stop()
    victim.watched = watch_spool(
        processes, victim.root, env=results | fake | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}, name="sidecar-back"
    )
    victim.goes_on()
    now_ns = victim.watched.get("/v1/taxbreak/status").json()["now_unix_ns"]

    offset.write_text("-2h")

    assert victim.watched.get("/v1/taxbreak/status").json()["now_unix_ns"] < now_ns - 3600 * 10**9
    assert answers(victim.server) == plain_answers
    victim.goes_on()
    assert victim.watched.value("analysis_lag_seconds") >= 0
    assert victim.watched.value("hdbi") > 0

    offset.write_text("+0")
    victim.goes_on()
    victim.watched.sidecar.process.stop()
    victim.watched = watch_spool(processes, victim.root, env=results, name="sidecar-true")
    victim.watched.settle()


def _their_traces(processes):
    return {path for path in (processes.folder / "theirs").rglob("*.json*") if path.stat().st_size > 0}


@pytest.mark.nightly
def test_vllms_profiler_and_ours_leave_each_other_alone_whichever_starts_first(
    victim, processes, answers, plain_answers, requests_under_way
):
    """Theirs starts while we record every step, runs while we would sample, and ends before we go on."""
    before, theirs = victim.watched.dropped("vllm_profiler"), _their_traces(processes)

    with requests_under_way(victim.server):
        asked = victim.ask_for_steps(steps=60, timeout_s=120)
        victim.watched.wait_until(lambda: _capture(victim, asked)["recorded"] > 0, "recording every step")
        httpx.post(f"{victim.server.url}/start_profile", timeout=120.0).raise_for_status()
        victim.wait_for_drops("vllm_profiler", before=before)
        httpx.post(f"{victim.server.url}/stop_profile", timeout=120.0).raise_for_status()
        victim.watched.wait_until(lambda: _capture(victim, asked)["status"] == "done", "done with the request")

    assert answers(victim.server) == plain_answers
    assert _capture(victim, asked)["analyzed"] == 60
    (trace,) = _their_traces(processes) - theirs
    opened = gzip.open if trace.suffix == ".gz" else open
    with opened(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    assert sum(event.get("cat") == "cpu_op" for event in events) > 1000
    assert not any(str(event.get("name")).startswith("taxbreak.step") for event in events)
    victim.goes_on()


def _capture(victim, asked):
    return victim.watched.get(f"/v1/taxbreak/captures/{asked['id']}").json()


@pytest.mark.nightly
def test_a_worker_and_an_engine_killed_in_mid_capture_leave_nothing_half_read_and_a_new_server_goes_on(
    victim, processes, tiny_llama, answers, plain_answers, sample_often
):
    """Two servers on one spool: the second is killed, and its successor too; the first never notices."""
    lost = victim.watched.dropped("analysis_failed")
    env = sample_often | {"TAXBREAK_SPOOL": str(victim.root)}
    for killed in ("worker", "engine"):
        before = {state.server.server_id for state in victim.watched.spool.states()}
        doomed = start_vllm(processes, tiny_llama, env=env, name=f"killed-{killed}").wait()
        assert answers(doomed) == plain_answers
        (server,) = (s.server for s in victim.watched.spool.states() if s.server.server_id not in before)
        victim.watched.wait_until(lambda: _num_steps_of(victim, server) > 0, "sampling the second server")  # noqa: B023

        half_written = _stop_in_mid_capture(victim, doomed, server)
        os.kill(server.pid if killed == "worker" else _parent(server.pid), signal.SIGKILL)
        os.kill(server.pid, signal.SIGCONT)
        _wait_for_its_end(doomed)

        assert answers(victim.server) == plain_answers
        assert killed == "engine" or half_written.exists()
        assert half_written.name not in {capture.step_id for capture in victim.watched.spool.captures()}
        victim.goes_on()
    assert victim.watched.dropped("analysis_failed") == lost
    assert victim.watched.dropped("analysis_crashed") == 0


def _num_steps_of(victim, server):
    steps = victim.watched.get("/v1/taxbreak/steps", limit=1000).json()["steps"]
    return sum(step["server_id"] == server.server_id for step in steps)


def _wait_for_its_end(server):
    deadline_s = time.monotonic() + 60
    while server.process.is_alive:
        assert time.monotonic() < deadline_s, "vLLM did not end with its worker"
        time.sleep(0.1)


def _stop_in_mid_capture(victim, server, labels):
    """Hold a worker still at an instant at which it has written a part of a capture; return that part's folder."""
    rank_dir = victim.root / labels.server_id / str(labels.rank)
    victim.ask_for_steps(steps=256, stacks=True, server_id=labels.server_id)
    deadline_s = time.monotonic() + 120
    pool = ThreadPoolExecutor(1)
    try:
        while time.monotonic() < deadline_s:
            sending = pool.submit(send, server.url, "tiny-llama", seed=next(_SEEDS), rounds=(LONG_ANSWER,))
            while not sending.done():
                if any(rank_dir.glob(".*.tmp/*")):
                    os.kill(labels.pid, signal.SIGSTOP)
                    for half_written in rank_dir.glob(".*.tmp"):
                        return half_written
                    os.kill(labels.pid, signal.SIGCONT)
    finally:
        pool.shutdown(wait=False)
    raise AssertionError(f"{labels.server_id} was never seen in mid-capture")


def _parent(pid):
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
