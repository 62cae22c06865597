import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.step import GraphMode, Server
from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.service.processes.analyzer import MAX_ATTEMPTS, MAX_CAPTURES_PER_TURN, Analyzer
from taxbreak_vllm.service.processes.claim import run_on
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.spool.layout import ANALYZED, STEP, TRACE
from taxbreak_vllm.spool.spool import Spool

DAY_NS = 86400 * 10**9


@pytest.fixture
def make_analyzer(spool, results, analyze, clock):
    def make(analyze=analyze, spool=spool):
        return Analyzer(spool, results, analyze, retention_ns=DAY_NS, now_ns=clock)

    return make


@pytest.fixture
def start(analyzer_command):
    """Start analyzer processes; none outlives its test."""
    started = []

    def start(*options, **env):
        process = subprocess.Popen(
            [*analyzer_command, *options], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | env
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def counted(results, counter, label=""):
    return sum(t.value for t in results.totals() if (t.counter, t.label) == (counter, label))


def read_mark(capture):
    return (capture.path / ANALYZED).read_text()


def is_claim_free(spool):
    with spool.claim() as is_free:
        return is_free


def test_a_turn_analyzes_what_is_pending_and_marks_it(make_analyzer, put, spool, results):
    captures = [put("a"), put("b")]

    assert make_analyzer().turn() == 2

    assert [read_mark(capture) for capture in captures] == ["analyzed"] * 2
    assert spool.pending() == []
    assert {step.step_id for step in results.steps()} == {"a", "b"}
    assert make_analyzer().turn() == 0


def test_a_turn_is_short_so_that_workers_are_heard(make_analyzer, put, spool):
    for index in range(MAX_CAPTURES_PER_TURN + 1):
        put(f"s{index}")

    assert make_analyzer().turn() == MAX_CAPTURES_PER_TURN
    assert len(spool.pending()) == 1


def test_what_was_asked_for_is_settled_before_what_was_sampled(make_analyzer, make_state, put, spool, results, clock):
    spool.put_state(make_state())
    request = CaptureRequest(capture_id="c", steps=2, created_unix_ns=clock(), expires_unix_ns=clock() + DAY_NS)
    results.add_capture("vllm-a", request)
    for index in range(3):
        put(f"sampled{index}")
    put("asked0", capture_id="c")
    put("asked1", capture_id="c")
    analyzer = make_analyzer()

    turns = []
    while analyzer.turn():
        turns.append({step.step_id for step in results.steps()} - set().union(*turns))

    assert turns == [{"asked0", "asked1"}, {"sampled0", "sampled1", "sampled2"}]


def test_while_steps_are_awaited_a_turn_is_one_capture_long(make_analyzer, make_state, put, spool, results, clock):
    request = CaptureRequest(capture_id="c", steps=1, created_unix_ns=clock(), expires_unix_ns=clock() + DAY_NS)
    spool.put_state(make_state())
    results.add_capture("vllm-a", request)
    put("sampled0")
    put("sampled1")
    analyzer = make_analyzer()

    assert analyzer.turn() == 1
    results.cancel_capture("c")
    put("sampled2")
    assert analyzer.turn() == 2


def test_the_states_of_the_workers_are_counted(make_analyzer, make_state, spool, results):
    spool.put_state(make_state(num_steps=10))

    make_analyzer().turn()

    assert counted(results, "steps", GraphMode.FULL) == 10


def test_a_garbage_trace_is_set_aside_counted_once_and_the_next_one_analyzed(make_analyzer, put, results, spool):
    bad, good = put("bad", trace=b"\x00 garbage"), put("good")
    analyzer = make_analyzer()

    analyzer.turn()
    (bad.path / ANALYZED).unlink()  # as if killed between the two
    analyzer.turn()

    assert read_mark(bad).startswith("failed: analysis_failed: TraceFormatError")
    assert read_mark(good) == "analyzed"
    (dropped,) = [t for t in results.totals() if t.counter == "dropped"]
    assert (dropped.model_name, dropped.label, dropped.value) == ("tiny", "analysis_failed", 1)


def test_a_capture_without_its_info_is_counted_under_its_workers_labels(make_analyzer, make_state, put, results, spool):
    spool.put_state(make_state())
    capture = put("a")
    (capture.path / STEP).write_text("{")

    make_analyzer().turn()

    (dropped,) = [t for t in results.totals() if t.counter == "dropped"]
    assert (dropped.model_name, dropped.label, dropped.value) == ("tiny", "analysis_failed", 1)


@pytest.mark.parametrize("number", [2**63, 2**70])
def test_garbage_among_names_and_numbers_stops_nothing_else(make_analyzer, make_state, put, results, spool, number):
    bad, good = put("bad"), put("good")
    (bad.path / STEP).write_text((bad.path / STEP).read_text().replace('"window_ns":300', f'"window_ns":{number}'))
    for name in ("x/²/cap", "x/20240101123456789012345/cap", "x/9999999999/cap"):
        shutil.copytree(good.path, spool.root / name)
    for server_id in ("huge", "nested"):
        spool.put_state(make_state(server=Server(server_id=server_id)))
    huge, nested = (spool.root / server_id / "0" / "state.json" for server_id in ("huge", "nested"))
    huge.write_text(huge.read_text().replace('"overhead_ns":0', f'"overhead_ns":{number}'))
    nested.write_text('{"x":' + 100_000 * "[")
    spool.put_state(make_state(num_steps=10))

    make_analyzer().turn()

    assert read_mark(bad).startswith("failed: analysis_failed: SpoolError")
    assert read_mark(good) == "analyzed"
    assert (counted(results, "sampled_steps"), counted(results, "dropped", "analysis_failed")) == (1, 1)
    assert [state.server.server_id for state in spool.states()] == ["vllm-a"]
    assert counted(results, "steps", GraphMode.FULL) == 10


def test_a_state_that_cannot_be_stored_is_left_out_and_said_once(make_analyzer, make_state, spool, results, caplog):
    state = make_state(num_steps=2**62, step_ns=1, server=Server(server_id="huge"))
    spool.put_state(replace(state, steps=state.steps * 2))  # two of a kind, which are added up
    spool.put_state(make_state(num_steps=10))
    analyzer = make_analyzer()

    for _ in range(3):
        analyzer.turn()

    assert counted(results, "steps", GraphMode.FULL) == 10
    assert len([record for record in caplog.records if "huge" in record.getMessage()]) == 1


def test_a_step_that_cannot_be_stored_is_set_aside(make_analyzer, analyze, put, results):
    def analyze_as_huge(capture):
        breakdown = analyze(capture)
        return replace(breakdown, steps=tuple(replace(step, kernels=2**63) for step in breakdown.steps))

    capture = put("a")
    make_analyzer(analyze_as_huge).turn()

    assert read_mark(capture).startswith("failed: analysis_failed: OverflowError")
    assert counted(results, "dropped", "analysis_failed") == 1


def test_a_capture_that_cannot_be_marked_is_left_for_later(make_analyzer, put, results, clock):
    analyzer = make_analyzer()
    analyzer.turn()
    bad, good = put("bad"), put("good")
    (blocker := bad.path / f".{ANALYZED}.{os.getpid()}.tmp").mkdir()  # where the mark is written first

    assert [analyzer.turn() for _ in range(2)] == [2, 0]
    assert good.is_analyzed
    blocker.rmdir()
    clock.sleep_s(61)
    analyzer.turn()  # keeps house
    analyzer.turn()

    assert read_mark(bad) == "analyzed"
    assert counted(results, "sampled_steps") == 2


def test_a_copy_of_a_capture_under_another_name_is_not_counted_again(make_analyzer, put, results):
    original = put("a")
    shutil.copytree(original.path, original.path.with_name("b"))

    make_analyzer().turn()

    assert {step.step_id for step in results.steps()} == {"a"}
    assert counted(results, "dropped", "analysis_failed") == 1
    assert "a copy of a" in results.failure("b")


def test_a_fault_of_our_own_costs_one_capture(make_analyzer, put, results, caplog):
    def analyze(capture):
        raise ZeroDivisionError("ours")

    capture = put("a")
    make_analyzer(analyze).turn()

    assert read_mark(capture) == "failed: analysis_failed: ZeroDivisionError: ours"
    assert "a fault of taxbreak's own" in caplog.text


def test_a_trace_of_several_steps_is_not_taken_for_one(make_analyzer, analyze, put, results):
    def analyze_two(capture):
        breakdown = analyze(capture)
        return type(breakdown)(source=breakdown.source, steps=breakdown.steps * 2)

    put("a")
    make_analyzer(analyze_two).turn()

    assert results.failure("a").startswith("analysis_failed: TraceFormatError")


@pytest.mark.parametrize("ends_with", ["result", "error"])
def test_a_capture_evicted_during_its_analysis_is_no_failure(make_analyzer, analyze, put, spool, results, ends_with):
    def analyze_evicted(capture):
        breakdown = analyze(capture)
        spool.remove(capture)
        if ends_with == "error":
            raise TraceFormatError("gone")
        return breakdown

    put("a")
    make_analyzer(analyze_evicted).turn()

    assert results.failure("a") is None
    assert spool.pending() == []
    assert counted(results, "sampled_steps") == (ends_with == "result")


def test_dying_between_commit_and_mark_counts_nothing_twice(make_analyzer, put, spool, results):
    class DyingSpool(Spool):
        def mark(self, capture, outcome):
            raise KeyboardInterrupt

    put("a")
    dying = DyingSpool(spool.root, max_bytes=spool.max_bytes, max_captures=spool.max_captures)
    with pytest.raises(KeyboardInterrupt):
        make_analyzer(spool=dying).turn()

    make_analyzer().turn()

    assert spool.pending() == []
    assert counted(results, "sampled_steps") == 1


def test_being_asked_to_leave_is_no_attempt_at_the_capture(make_analyzer, put, results):
    def leave(capture):
        raise SystemExit

    put("a")
    for _ in range(MAX_ATTEMPTS + 2):
        with pytest.raises(SystemExit):
            make_analyzer(leave).turn()

    make_analyzer().turn()
    assert results.failure("a") is None


def test_old_steps_go_and_counters_stay(make_analyzer, put, results, clock):
    put("old")
    make_analyzer().turn()
    clock.sleep_s(2 * 86400)
    put("new")

    make_analyzer().turn()

    assert [step.step_id for step in results.steps()] == ["new"]
    assert counted(results, "sampled_steps") == 2


def test_a_clock_that_was_set_back_does_not_put_off_housekeeping(make_analyzer, spool, clock):
    analyzer = make_analyzer()
    analyzer.turn()
    clock.sleep_s(-7200)
    spool.make()
    (abandoned := spool.root / "vllm-a" / "0" / ".s1.tmp").mkdir(parents=True)
    os.utime(abandoned, ns=(clock() - 3600 * 10**9,) * 2)

    analyzer.turn()

    assert not abandoned.exists()


def test_the_loop_runs_until_it_is_stopped(make_analyzer, put, spool):
    put("a")

    class StopsWhenIdle(threading.Event):
        def wait(self, timeout=None):
            self.set()
            return True

    make_analyzer().run(StopsWhenIdle())

    assert spool.pending() == []


def test_killed_at_any_time_nothing_is_lost_and_nothing_counted_twice(start, put, begun, spool, results, until):
    ids = [f"s{index:02}" for index in range(12)]
    for step_id in ids:
        put(step_id)

    for number in range(5):  # each one dies over another capture
        process = start(ANALYSIS_S="0.02")
        until(lambda number=number: len(set(begun())) > 2 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
    start()
    until(lambda: spool.pending() == [])

    assert sorted(step.step_id for step in results.steps()) == ids
    assert counted(results, "sampled_steps") == len(ids)
    assert counted(results, "device_active_ns") == 110 * len(ids)
    assert not [t for t in results.totals() if t.counter == "dropped"]


def test_results_that_are_deleted_under_it_are_begun_anew(start, put, spool, settings, until):
    put("a")
    process = start()
    until(lambda: spool.pending() == [])

    while spool.root.exists():  # the analyzer may write into a folder that is being emptied
        shutil.rmtree(spool.root, ignore_errors=True)

    assert process.wait(timeout=60) == 1
    assert b"Traceback" not in process.stderr.read()
    put("b")
    start()
    until(lambda: spool.find("b").is_analyzed)
    with Results(settings.results_path) as results:
        assert [step.step_id for step in results.steps()] == ["b"]


def test_results_that_are_damaged_are_said_in_one_line(start, put, settings, damage_results):
    damage_results()
    capture = put("a")

    process = start()

    assert process.wait(timeout=60) == 1
    (line,) = process.stderr.read().decode().splitlines()
    assert f"{settings.results_path}: the results are damaged" in line
    assert not capture.is_analyzed


def test_results_that_cannot_be_written_for_a_while_cost_no_step(make_analyzer, put, results, settings):
    """SQLite's own limit on the number of pages stands for a full disk: it raises the same error."""
    num_pages = results._db.execute("PRAGMA page_count").fetchone()[0]
    results._db.execute(f"PRAGMA max_page_count = {num_pages}")
    capture = put("a")
    analyzer = make_analyzer()

    class Turns(threading.Event):
        num = 0

        def wait(self, timeout=None):
            self.num += 1
            if self.num == 2 * MAX_ATTEMPTS:
                results._db.execute("PRAGMA max_page_count = 100000")
            elif self.num > 2 * MAX_ATTEMPTS and capture.is_analyzed:
                self.set()
            assert self.num < 100
            return self.is_set()

    run_on(analyzer.run, Turns(), role="analyzer", pause_s=1)

    assert read_mark(capture) == "analyzed"
    assert counted(results, "sampled_steps") == 1


@pytest.mark.parametrize(("trace", "ended_by"), [(b"crash", signal.SIGKILL), (b"hang", signal.SIGALRM)])
def test_a_capture_that_takes_the_process_with_it_is_set_aside_after_three_tries(
    start, put, begun, spool, results, until, trace, ended_by
):
    bad = put("bad", trace=trace)
    good = put("good")

    limit = ("--limit-s", "1") if trace == b"hang" else ()
    for _ in range(MAX_ATTEMPTS):
        assert start(*limit).wait() == -ended_by
    start()
    until(lambda: good.is_analyzed)

    assert begun() == ["bad"] * MAX_ATTEMPTS + ["good"]
    assert read_mark(bad).startswith("failed: analysis_crashed")
    assert counted(results, "dropped", "analysis_crashed") == 1


@pytest.mark.parametrize("how", ["its input closes", "SIGTERM"])
@pytest.mark.parametrize("doing", ["nothing", "an analysis"])
def test_the_process_leaves_at_once_and_in_order(start, put, begun, spool, until, how, doing):
    if doing == "an analysis":
        put("slow", trace=b"slow")
    process = start()
    until(begun if doing == "an analysis" else lambda: not is_claim_free(spool))

    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:
        process.stdin.close()

    assert process.wait(timeout=60) == 0
    assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_is_left_to_the_one_that_started_it(start, put, spool, until):
    process = start()
    until(lambda: not is_claim_free(spool))

    process.send_signal(signal.SIGINT)

    capture = put("a")
    until(lambda: capture.is_analyzed)


def test_of_two_processes_one_works_and_the_other_takes_over(start, put, spool, until):
    first = start()
    until(lambda: not is_claim_free(spool))
    start()
    first.kill()

    capture = put("a")

    until(lambda: capture.is_analyzed)


def test_it_dies_with_a_parent_that_was_killed(analyzer_command, spool, until):
    script = "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE); p.wait()"
    parent = subprocess.Popen([sys.executable, "-c", script, *analyzer_command])
    until(lambda: not is_claim_free(spool))

    parent.kill()
    parent.wait()

    until(lambda: is_claim_free(spool))


def test_results_that_cannot_be_opened_are_said_in_one_line(start, settings):
    settings.spool.mkdir()
    settings.results_path.write_bytes(b"not a database" * 100)

    process = start()

    assert process.wait(timeout=60) == 1
    (line,) = process.stderr.read().decode().splitlines()
    assert "cannot use the results" in line


def test_a_folder_that_is_no_spool_is_said_once_and_waited_for(start, put, settings, until):
    settings.spool.mkdir()
    (thesis := settings.spool / "thesis.txt").touch()
    settings.spool.chmod(0o777)
    process = start()
    said = process.stderr.readline()
    time.sleep(1.5)  # it looks again each second

    thesis.unlink()
    capture = put("a")
    until(lambda: capture.is_analyzed)
    process.kill()

    assert b"may have written" in said
    assert b"may have written" not in process.stderr.read()


def test_it_lets_every_other_process_go_first(analyzer_command, spool, until):
    """Also where niceness counts within a session only, as it has one of its own under a supervisor."""
    process = subprocess.Popen(analyzer_command, stdin=subprocess.PIPE, start_new_session=True)
    with process:
        until(lambda: not is_claim_free(spool))

        assert os.getpriority(os.PRIO_PROCESS, process.pid) >= 10
        group = Path(f"/proc/{process.pid}/autogroup")
        assert not group.exists() or group.read_text().split()[-1] == "10"
        process.stdin.close()


def test_it_writes_files_for_its_owner_only(start, put, spool, until):
    capture = put("a")
    start()
    until(lambda: capture.is_analyzed)

    assert [path for path in spool.root.rglob("*") if path.name != ".writer.lock" and path.stat().st_mode & 0o077] == []


def test_a_name_that_is_no_capture_of_ours_is_set_aside(make_analyzer, spool, results):
    (folder := spool.root / "server" / "0" / "folder").mkdir(parents=True)
    (folder / STEP).touch()

    make_analyzer().turn()

    assert results.failure("folder").startswith("analysis_failed: SpoolError")
    assert not (folder / TRACE).exists()
    assert results.worker(Server(server_id="server")) is None
