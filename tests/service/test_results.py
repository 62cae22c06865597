import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.step import GraphMode, Server
from taxbreak_vllm.model.worker import CaptureRequest
from taxbreak_vllm.service.results.rows import Refusal
from taxbreak_vllm.service.results.store import Results


@pytest.fixture
def add(results, spool, analyze, put, clock):
    def add(step_id, **fields):
        capture = spool.find(step_id) or put(step_id, **fields)
        results.add_step(step_id, capture.read_info(), analyze(capture), now_ns=clock())

    return add


def total(results, counter, label="", **labels):
    found = [t for t in results.totals() if (t.counter, t.label) == (counter, label)]
    found = [t for t in found if all(getattr(t, name) == value for name, value in labels.items())]
    return sum(t.value for t in found) if found else None


def request(capture_id, steps=2, created_ns=0):
    return CaptureRequest(
        capture_id=capture_id, steps=steps, created_unix_ns=created_ns, expires_unix_ns=created_ns + 10**9
    )


def test_a_results_file_that_others_can_read_is_closed_to_them(settings):
    with Results(settings.results_path):
        pass
    settings.results_path.chmod(0o666)

    with Results(settings.results_path):
        assert settings.results_path.stat().st_mode & 0o777 == 0o600


def test_a_step_handed_in_twice_counts_once(results, add):
    add("a")
    add("a")

    assert total(results, "sampled_steps") == 1
    assert total(results, "orchestration_ns", "delta_ft") == 60


def test_what_is_none_has_no_counter_and_a_true_zero_has_one(results, add):
    add("a", is_cpu=True)

    assert total(results, "orchestration_ns", "delta_kt") == 0
    assert total(results, "orchestration_ns", "delta_ct") is None
    assert total(results, "exposed_ns", "delta_ct") is None
    assert total(results, "tklqt_ns") is None
    assert total(results, "launches") is None


def test_counters_outlive_the_steps_they_counted(results, add, clock):
    add("a")
    clock.sleep_s(100)
    add("b")

    results.prune(before_ns=clock() - 10, pending=[])

    assert [step.step_id for step in results.steps()] == ["b"]
    assert total(results, "sampled_steps") == 2


def test_a_step_whose_capture_is_still_pending_is_not_pruned_and_so_not_counted_again(results, add, clock):
    add("a")
    clock.sleep_s(100)

    results.prune(before_ns=clock(), pending=["a"])
    add("a")

    assert total(results, "sampled_steps") == 1


def test_results_survive_being_closed(settings, results, add):
    add("a", scale=3)

    with Results(settings.results_path) as again:
        assert total(again, "device_active_ns") == 330
        assert [step.active_ns for step in again.steps()] == [330]


def test_a_failure_counts_once(results, clock):
    for _ in range(2):
        results.add_failure("a", Server(server_id="s"), capture_id=None, reason="r", detail="d", now_ns=clock())

    assert total(results, "dropped", "r") == 1
    assert results.failure("a") == "r: d"


def test_a_workers_counters_add_what_is_new_since_the_last_state(results, make_state, clock):
    results.put_states([make_state(num_steps=10, dropped={"backlog": 1})])
    clock.sleep_s(1)
    results.put_states([make_state(num_steps=15, dropped={"backlog": 1})])
    results.put_states([make_state(num_steps=15, dropped={"backlog": 1})])

    assert total(results, "steps", GraphMode.FULL) == 15
    assert total(results, "step_ns") == 15 * 300_000
    assert total(results, "step_bucket", "2") == 15
    assert total(results, "dropped", "backlog") == 1


@pytest.mark.parametrize("server_id", ["vllm-a", "vllm-b"])
def test_counters_do_not_fall_when_a_server_starts_again(results, make_state, clock, server_id):
    """Neither as the same server, nor as another one of the same labels."""
    server = Server(server_id=server_id, model_name="tiny")
    results.put_states([make_state(num_steps=10)])
    clock.sleep_s(60)

    results.put_states([make_state(num_steps=4, server=server, started_ns=clock())])

    assert total(results, "steps", GraphMode.FULL) == 14


def test_a_histogram_of_another_version_is_left_out(results, make_state):
    state = make_state()
    (histogram,) = state.steps
    other = type(histogram)(
        phase=histogram.phase, graph_mode=GraphMode.FULL, num_steps=1, sum_ns=1, bucket_counts=(1, 2)
    )

    results.put_states([make_state(steps=(other,))])

    assert total(results, "steps", GraphMode.FULL) is None


def test_one_request_at_a_time_for_a_server(results):
    assert results.add_capture("a", request("1")) is None
    assert results.add_capture("a", request("2")) == Refusal(running_id="1")
    assert results.add_capture("b", request("3")) is None
    results.cancel_capture("1")
    assert results.add_capture("a", request("4")) is None
    assert results.add_capture("a", request("5", created_ns=2 * 10**9)) is None  # the 4th expired


def test_more_requests_than_may_be_in_a_minute_are_told_when_to_come_again(results):
    second_ns = 10**9

    def ask(at_s):
        asked = request(str(at_s), created_ns=at_s * second_ns)
        refusal = results.add_capture("a", asked, per_minute=2)
        results.cancel_capture(asked.capture_id)
        return refusal

    assert ask(0) is None
    assert ask(10) is None
    assert ask(20) == Refusal(retry_after_ns=40 * second_ns)
    assert ask(59) == Refusal(retry_after_ns=1 * second_ns)
    assert ask(60) is None
    assert ask(61) == Refusal(retry_after_ns=9 * second_ns)


def test_requests_and_steps_are_paged_newest_first_and_none_twice(results, add, clock):
    for index in range(5):
        results.add_capture("a", request(f"c{index}", created_ns=index // 2))  # two at a time are as old
        results.cancel_capture(f"c{index}")
        add(f"s{index}")
        clock.sleep_s(index % 2)

    def paged(read, name):
        ids, after = [], None
        while page := [getattr(row, name) for row in read(limit=2, after=after)]:
            ids, after = ids + page, page[-1]
        return ids

    assert paged(results.captures, "capture_id") == ["c4", "c3", "c2", "c1", "c0"]
    assert paged(results.steps, "step_id") == ["s4", "s3", "s2", "s1", "s0"]
    assert results.steps(after="none") == results.captures(after="none") == []


def test_what_hangs_on_a_step_is_pruned_with_it(results, add, clock, settings):
    add("a")
    clock.sleep_s(1)

    results.prune(before_ns=clock(), pending=[])

    db = sqlite3.connect(settings.results_path)
    tables = ("steps", "breakdowns", "families", "top")
    assert [db.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables] == [(0,)] * 4
    db.close()


def test_a_request_is_as_far_as_its_slowest_rank(results, add, make_state):
    ranks = [Server(server_id="vllm-a", model_name="tiny", rank=rank) for rank in range(2)]
    results.put_states(make_state(server=server) for server in ranks)
    results.add_capture("vllm-a", request("c", steps=2))
    add("a0", server=ranks[0], capture_id="c")
    add("b0", server=ranks[0], capture_id="c")
    add("a1", server=ranks[1], capture_id="c")
    results.add_failure("b1", ranks[1], capture_id="c", reason="r", detail="", now_ns=1)

    (row,) = results.captures("c")

    assert (row.recorded, row.analyzed, row.settled) == (2, 1, 2)


def test_ranks_that_only_time_and_engines_without_work_hold_no_request_up(results, add, make_state):
    ranks = [Server(server_id="vllm-a", model_name="tiny", engine=str(rank // 2), rank=rank) for rank in range(4)]
    results.put_states(make_state(server=server, records=server.rank % 2 == 0) for server in ranks)
    results.add_capture("vllm-a", request("c", steps=2))
    add("a0", server=ranks[0], capture_id="c")
    add("b0", server=ranks[0], capture_id="c")

    (row,) = results.captures("c")

    assert (row.recorded, row.analyzed, row.settled) == (2, 2, 2)


def test_the_oldest_steps_go_where_the_file_would_grow_beyond_its_bound(results, add, clock):
    for number in range(40):
        clock.sleep_s(1)
        add(f"s{number:02}")
    half = results.used_bytes() // 2

    results.prune(before_ns=0, pending=["s00"], max_bytes=half)

    kept = sorted(step.step_id for step in results.steps())
    assert results.used_bytes() <= half
    assert kept == ["s00", *(f"s{number:02}" for number in range(41 - len(kept), 40))]
    assert total(results, "sampled_steps") == 40


def test_a_bound_that_cannot_be_kept_ends_with_nothing_to_delete(results, add):
    add("a")

    results.prune(before_ns=0, pending=["a"], max_bytes=1)

    assert [step.step_id for step in results.steps()] == ["a"]


def test_the_file_and_its_log_are_only_ours(settings, results, add):
    add("a")

    modes = {path.name: path.stat().st_mode & 0o777 for path in settings.spool.glob("results.sqlite3*")}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 3  # the file, its log and the log's index


LAYOUT_1 = """
CREATE TABLE steps (
    step_id TEXT PRIMARY KEY, server_id TEXT NOT NULL, model_name TEXT NOT NULL, engine TEXT NOT NULL,
    rank INTEGER NOT NULL, phase TEXT NOT NULL, started_unix_ns INTEGER NOT NULL, breakdown BLOB NOT NULL
);
CREATE INDEX steps_by_start ON steps (started_unix_ns);
CREATE TABLE totals (
    model_name TEXT, engine TEXT, rank INTEGER, phase TEXT, counter TEXT, label TEXT, value INTEGER NOT NULL,
    PRIMARY KEY (model_name, engine, rank, phase, counter, label)
) WITHOUT ROWID;
CREATE TABLE attempts (step_id TEXT PRIMARY KEY, num INTEGER NOT NULL);
INSERT INTO steps VALUES ('old', 's', 'tiny', '0', 0, 'decode', 1, x'7b7d');
INSERT INTO totals VALUES ('tiny', '0', 0, 'decode', 'sampled_steps', '', 41);
PRAGMA user_version = 1;
"""


def test_counters_outlive_a_file_of_another_layout_whose_steps_do_not(settings, spool, put, analyze):
    spool.make()
    with closing(sqlite3.connect(settings.results_path)) as db:
        db.executescript(LAYOUT_1)

    with Results(settings.results_path) as results:
        capture = put("a")
        results.add_step("a", capture.read_info(), analyze(capture), now_ns=1)

        assert [step.step_id for step in results.steps()] == ["a"]
        assert total(results, "sampled_steps") == 42


LAYOUT_2 = Path(__file__).with_name("results-layout-2.sql")


@pytest.mark.parametrize("turns", [1, 2])
def test_a_file_from_before_files_had_marks_goes_on_as_it_was(settings, spool, put, analyze, turns):
    spool.make()
    with closing(sqlite3.connect(settings.results_path)) as db:
        db.executescript(LAYOUT_2.read_text())

    for turn in range(turns):
        with Results(settings.results_path) as results:
            before = results.window().breakdown.total
            capture = put(f"new-{turn}")
            results.add_step(capture.step_id, capture.read_info(), analyze(capture), now_ns=1)

    with Results(settings.results_path) as results:
        window = results.window()
        assert total(results, "sampled_steps") == window.num_steps == 2 + turns
        assert total(results, "orchestration_ns", "delta_ft") == window.breakdown.total.taxes.delta_ft_ns
        assert total(results, "steps", "FULL") == 10
        assert window.breakdown.total.taxes.delta_ft_ns == before.taxes.delta_ft_ns + 60
        assert [row.count for row in window.breakdown.total.top] == [3 * 2, 3 * turns]


WIDER_TAXES = """
import json, sys
from dataclasses import make_dataclass, replace
from pathlib import Path
from taxbreak_vllm.model import breakdown
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo

Wider = make_dataclass(
    "Wider", [("delta_xt_ns", int | None, None)], bases=(breakdown.Taxes,), frozen=True, slots=True, kw_only=True
)
breakdown.StepBreakdown.__annotations__["taxes"] = Wider  # as where `Taxes` had one integer more
from taxbreak_vllm.service.results.store import Results

server = Server(server_id="s", model_name="tiny")
step = breakdown.StepBreakdown(taxes=Wider(delta_ft_ns=60, delta_xt_ns=5))
info = StepInfo(
    step_id="wide", step_index=0, server=server, phase=Phase.DECODE, batch=Batch(), graph_mode=GraphMode.NONE,
    started_unix_ns=1, window_ns=1,
)
with Results(Path(sys.argv[1])) as results:
    results.add_step("wide", info, breakdown.Breakdown(source=breakdown.Source(), steps=(step,)), now_ns=1)
    taxes = results.window().breakdown.total.taxes
    sampled = sum(total.value for total in results.totals() if total.counter == "sampled_steps")
print(json.dumps([taxes.delta_ft_ns, taxes.delta_xt_ns, sampled]))
"""


def test_one_more_integer_in_a_breakdown_is_one_more_column_and_costs_no_counter(settings, results, add):
    """By a version that knows it and one that does not, in turns."""
    add("before")

    wider = subprocess.run(
        [sys.executable, "-c", WIDER_TAXES, str(settings.results_path)], capture_output=True, text=True, timeout=60
    )

    assert (wider.stderr, wider.stdout) == ("", "[120, 5, 2]\n")
    with Results(settings.results_path) as again:
        assert again.window().breakdown.total.taxes.delta_ft_ns == 120
    add("after")  # through a connection that was open all along
    assert total(results, "sampled_steps") == 3


def test_a_file_of_a_newer_version_is_refused_with_advice(tmp_path):
    path = tmp_path / "results"
    Results(path).__exit__(None, None, None)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(
        TaxbreakError, match=r"results: results of another version of taxbreak \(99\): upgrade.* TAXBREAK_RESULTS"
    ):
        Results(path)


def test_a_file_that_is_no_results_file_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(os.urandom(4096))

    with pytest.raises(TaxbreakError, match=r"notes\.txt: cannot use the results"):
        Results(path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(TaxbreakError, match="TAXBREAK_RESULTS"):
        Results(tmp_path / "file" / "results")


def test_many_processes_may_open_a_new_file_at_once(tmp_path):
    script = "import sys; from pathlib import Path; from taxbreak_vllm.service.results.store import Results\n"
    script += "sys.stdin.read()\nwith Results(Path(sys.argv[1])) as r: r.note_attempt('a')"
    command = [sys.executable, "-c", script, str(tmp_path / "results")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)]

    for process in processes:
        process.stdin.close()
    errors = [process.stderr.read().decode() for process in processes]
    codes = [process.wait() for process in processes]

    assert errors == [""] * 8
    assert codes == [0] * 8
    with Results(tmp_path / "results") as results:
        assert results.note_attempt("a") == 9
    for process in processes:
        process.stderr.close()
