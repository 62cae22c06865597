"""The archiver: nothing lost that could be copied, nothing twice, whatever the store does; and nobody waits for it."""

import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx
import msgspec
import pyarrow.parquet as pq
import pytest
from object_store import (
    AWAY,
    FORBIDDEN,
    FULL,
    HANGING,
    KEY,
    LOST,
    PASS,
    SECRET,
    SLOW,
    UNAVAILABLE,
    FaultProxy,
    s3_server,
)

from taxbreak_vllm.archive.bundle import info_of
from taxbreak_vllm.archive.layout import CAPTURES, ITERATIONS, TABLES
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.iterations.rows import Column
from taxbreak_vllm.iterations.window import decode_window
from taxbreak_vllm.model.errors import Refused
from taxbreak_vllm.model.frontend import FrontendState, Stage, Waterfall
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.output.archive_tables import COLUMNS, Table
from taxbreak_vllm.service.metrics.archive import ArchiveCollector
from taxbreak_vllm.service.processes.analyzer import Analyzer
from taxbreak_vllm.service.processes.archiver import Archiver, Bounds
from taxbreak_vllm.service.results.archive import Ledger, ledger_path
from tests.iterations.test_window import window

STEP = Path(__file__).parents[1] / "data" / "cpu_decode"
BOUNDS = Bounds(bytes_per_second=10**9, bytes_per_day=10**12, batch_s=300)


@pytest.fixture(autouse=True)
def _today(clock):
    """Files in the spool have the time of the machine, and so has everything here."""
    clock.ns = time.time_ns()


@pytest.fixture
def folder(tmp_path):
    """An archive in a folder."""
    (tmp_path / "share").mkdir()
    return Store(f"file://{tmp_path}/share")


@pytest.fixture
def archiver_on(spool, settings, clock):
    """Make an archiver on a store, with its ledger; it sleeps by the tests' clock."""
    spool.make()
    opened = []

    def make(store, bounds=BOUNDS, kind=Archiver):
        opened.append(Ledger(ledger_path(settings.results_path, store.url)))
        return kind(spool, settings.results_path, opened[-1], store, bounds, sleep=clock.sleep_s, now_ns=clock)

    yield make
    for ledger in opened:
        with ledger:
            pass


@pytest.fixture
def analyzed(spool, results, analyze, clock):
    """Let the analyzer do what there is to do."""
    return lambda: Analyzer(spool, results, analyze, retention_ns=86400 * 10**9, now_ns=clock).turn()


@pytest.fixture
def metrics(settings, clock):
    """What a scrape tells of an archive."""

    def read(store):
        collector = ArchiveCollector(ledger_path(settings.results_path, store.url), now_ns=clock)
        return {
            (sample.name.removeprefix("taxbreak_archive_"), *sample.labels.values()): sample.value
            for family in collector.collect()
            for sample in family.samples
        }

    return read


def archived_steps(store):
    """The ids of all captures in an archive, each as often as it is there."""
    return sorted(info_of(store.get(key)).step_id for key in store.list(CAPTURES))


def rows(store, table):
    """All rows of a table."""
    files = [pq.read_table(io.BytesIO(store.get(key))) for key in store.list(f"{TABLES}/{table}")]
    return [row for file in files for row in file.to_pylist()]


def row_ids(store):
    return sorted(row["step_id"] for row in rows(store, Table.BREAKDOWNS))


def test_each_capture_is_one_object_and_each_analyzed_step_one_row(folder, archiver_on, put, analyzed, clock, metrics):
    archiver = archiver_on(folder)
    for number in range(3):
        put(f"step-{number}")
    put("bad", trace=b"junk")
    archiver.turn()
    analyzed()

    for _ in range(3):
        clock.sleep_s(301)
        archiver.turn()

    assert archived_steps(folder) == ["bad", "step-0", "step-1", "step-2"]
    assert row_ids(folder) == ["step-0", "step-1", "step-2"]
    (row, *_) = rows(folder, Table.BREAKDOWNS)
    assert list(row) == list(COLUMNS[Table.BREAKDOWNS])
    assert (row["server_id"], row["model_name"], row["taxes.delta_ft_ns"], row["hdbi"]) == ("vllm-a", "tiny", 60, 0.55)
    assert row["iteration.window_ns"] is None
    assert metrics(folder)["objects_total", "captures"] == 4
    assert metrics(folder)["lag_seconds",] == 0


def test_the_newest_windows_and_requests_are_sampled_and_none_twice(folder, archiver_on, spool, make_state, clock):
    archiver = archiver_on(folder)
    spool.put_state(make_state())
    spool.put_frontend_state(FrontendState(server_id="vllm-a", api="0", updated_unix_ns=clock()))
    requests = [
        Waterfall(
            number=number,
            engine="0",
            started_unix_ns=clock() + number,
            total_ns=30,
            ttft_ns=20,
            stages_ns={Stage.QUEUE: 10, Stage.DECODE: 20},
            first_token_ns={Stage.SEND: 1},
            num_prompt_tokens=4,
            num_output_tokens=2,
            is_streamed=True,
        )
        for number in range(5)
    ]
    for shown in (requests[:3], requests[:3], requests[1:]):
        spool.put_waterfalls("vllm-a", "0", shown)
        clock.sleep_s(301)
        spool.put_state(make_state())
        archiver.turn()

    found = rows(folder, Table.WATERFALLS)
    assert sorted(row["number"] for row in found) == [0, 1, 2, 3, 4]
    assert {(row["queue_ns"], row["decode_ns"], row["prefill_ns"], row["model_name"]) for row in found} == {
        (10, 20, None, "tiny")
    }


def test_the_newest_window_of_an_engine_is_archived_as_it_is_with_a_row_for_each_phase(
    folder, archiver_on, spool, make_state, clock
):
    archiver = archiver_on(folder)
    spool.put_state(make_state())
    for number in range(2):
        spool.put_window("vllm-a", "3", number, window(server_id="vllm-a", begin=number).encode())
        for _ in range(2):
            clock.sleep_s(301)
            archiver.turn()

    found = [decode_window(folder.get(key), Path()) for key in folder.list(ITERATIONS, model="tiny")]
    assert sorted(int(each.rows[0, Column.INPUT0]) for each in found) == [
        int(window(begin=number).rows[0, Column.INPUT0]) for number in range(2)
    ]
    table = rows(folder, Table.ITERATIONS)
    assert [(row["engine"], row["phase"], row["iterations"], row["model_name"]) for row in table] == [
        ("3", "prefill", 4, "tiny")
    ] * 2
    assert all(row["total_median_ns"] > row["worker_median_ns"] > 0 for row in table)
    assert {row["no_work_median_ns"] for row in table} == {100_000}


def test_what_leaves_the_spool_before_it_is_copied_is_counted_and_named(
    folder, archiver_on, put, spool, clock, caplog, metrics, tmp_path
):
    archiver = archiver_on(folder)
    (tmp_path / "share").rename(tmp_path / "elsewhere")
    first = put("first")
    put("second")
    archiver.turn()
    clock.sleep_s(100)
    spool.remove(first)
    with caplog.at_level(logging.WARNING, "taxbreak.archiver"):
        archiver.turn()

    assert [record.message for record in caplog.records if "lost" in record.message] == [
        "vllm-a/0/first is lost to the archive: it left the spool before it could be copied"
    ]
    assert metrics(folder)["lost_total", "captures"] == 1
    assert metrics(folder)["failures_total", "away"] == 2
    assert metrics(folder)["lag_seconds",] > 0
    (tmp_path / "elsewhere").rename(tmp_path / "share")
    clock.sleep_s(100)
    archiver.turn()
    assert archived_steps(folder) == ["second"]
    assert metrics(folder)["lag_seconds",] == 0


def test_a_store_that_is_away_is_asked_less_and_less_often(folder, archiver_on, put, clock, metrics, tmp_path):
    archiver = archiver_on(folder)
    (tmp_path / "share").rmdir()
    put("step")

    asked = []
    for _ in range(250):
        before = metrics(folder).get(("failures_total", "away"), 0)
        archiver.turn()
        if metrics(folder)["failures_total", "away"] > before:
            asked.append(clock())
        clock.sleep_s(1)

    pauses = [(later - earlier) / 10**9 for earlier, later in pairwise(asked)]
    assert max(pauses) <= 61
    assert pauses[0] < 3
    assert sorted(pauses[:4]) == pauses[:4]
    assert len(asked) < 20


def test_bytes_a_second_and_a_day_are_kept(folder, archiver_on, put, clock, metrics):
    put("first", trace=random.Random(1).randbytes(200_000))
    put("second", trace=random.Random(2).randbytes(200_000))
    put("third", trace=random.Random(3).randbytes(200_000))
    archiver = archiver_on(folder, Bounds(bytes_per_second=100_000, bytes_per_day=500_000, batch_s=10**6))
    begin_ns = clock()

    archiver.turn()

    assert archived_steps(folder) == ["first", "second"]
    assert 2 <= (clock() - begin_ns) / 10**9 < 3
    assert metrics(folder)["failures_total", "day_full"] == 1
    archiver.turn()
    assert metrics(folder)["failures_total", "day_full"] == 1
    clock.sleep_s(86_400)
    archiver.turn()
    assert archived_steps(folder) == ["first", "second", "third"]


def test_a_capture_that_is_not_whole_is_passed_over_once(folder, archiver_on, put, clock, metrics, spool):
    put("whole")
    put("broken").trace_path.unlink()
    archiver = archiver_on(folder)

    for _ in range(2):
        archiver.turn()

    assert archived_steps(folder) == ["whole"]
    assert metrics(folder)["failures_total", "unreadable"] == 1
    assert metrics(folder)["lag_seconds",] == 0


class PickyStore(Store):
    """A store that never takes two objects."""

    def put(self, key, data):
        if key.kind == CAPTURES and info_of(data).step_id in ("step-0", "step-1"):
            raise Refused("not this one")
        return super().put(key, data)


def test_an_object_that_is_never_taken_holds_up_no_others(folder, archiver_on, put, analyzed, clock, metrics):
    archiver = archiver_on(PickyStore(folder.url))
    for number in range(4):
        put(f"step-{number}")
    analyzed()

    for _ in range(5):
        clock.sleep_s(301)
        archiver.turn()

    assert archived_steps(folder) == row_ids(folder) == ["step-2", "step-3"]
    assert metrics(folder)["failures_total", "refused"] == 5
    assert metrics(folder)["lag_seconds",] > 1000


class Killed(BaseException):
    """The process ends here."""


class Doom:
    """Ends a process at its n-th write: into its ledger, into the store, or right after that."""

    num_writes = 0
    at = 0

    @classmethod
    def write(cls):
        cls.num_writes += 1
        if cls.num_writes == cls.at:
            raise Killed


class DoomedStore(Store):
    def put(self, key, data):
        Doom.write()
        was_new = super().put(key, data)
        Doom.write()
        return was_new


class DoomedLedger(Ledger):
    """SQLite's transactions are what makes that there are no other places."""

    def __getattribute__(self, name):
        if name in ("store", "add", "store_batch", "look"):
            Doom.write()
        return super().__getattribute__(name)


def run_killed(kind, folder, spool, settings, clock, put, analyzed):
    """Archive three steps with a process that is killed at each of its writes in turn, and goes on as another."""
    for number in range(3):
        put(f"step-{number}")
    analyzed()
    for at in range(1, 100):
        Doom.num_writes, Doom.at = 0, at
        try:
            with DoomedLedger(ledger_path(settings.results_path, folder.url)) as ledger:
                archiver = kind(spool, settings.results_path, ledger, DoomedStore(folder.url), BOUNDS, now_ns=clock)
                clock.sleep_s(301)
                archiver.turn()
        except Killed:
            continue
        return at
    raise AssertionError("never done")


def test_a_process_killed_at_any_write_loses_nothing_and_puts_nothing_twice(
    folder, spool, settings, clock, put, analyzed
):
    num_runs = run_killed(Archiver, folder, spool, settings, clock, put, analyzed)

    assert num_runs > 5
    assert archived_steps(folder) == row_ids(folder) == [f"step-{number}" for number in range(3)]


class Hasty(Archiver):
    """A fault to be found: what is under way counts as done."""

    def _put(self, key, data):
        names = [name for name, is_stored in self._ledger.things(CAPTURES).items() if not is_stored]
        if key.kind == CAPTURES:
            self._ledger.store(CAPTURES, names[0], num_bytes=len(data), now_ns=self._now_ns())
        super()._put(key, data)


def test_an_upload_that_counts_before_it_is_done_is_found(folder, spool, settings, clock, put, analyzed):
    run_killed(Hasty, folder, spool, settings, clock, put, analyzed)

    assert archived_steps(folder) != [f"step-{number}" for number in range(3)]


@contextmanager
def s3_archiver(bucket, monkeypatch, archiver_on):
    """An archiver on S3 behind a proxy."""
    with FaultProxy(bucket) as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        store = Store(bucket.url, timeout_s=1, retry_s=1)
        yield proxy, store, archiver_on(store)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.mark.parametrize("mode", [AWAY, UNAVAILABLE, FULL, FORBIDDEN, HANGING, LOST])
def test_an_s3_that_fails_is_caught_up_with_and_gets_everything_once(
    s3, mode, monkeypatch, archiver_on, put, analyzed, clock, metrics, caplog
):
    with s3_archiver(replace(s3, path=f"{s3.path}/{mode}"), monkeypatch, archiver_on) as (proxy, store, archiver):
        put("before", trace=random.Random(0).randbytes(300_000))
        archiver.turn()
        proxy.mode = mode
        for number in range(3):
            put(f"during-{number}", trace=random.Random(number).randbytes(300_000))
        for _ in range(2):
            clock.sleep_s(61)
            archiver.turn()
        analyzed()
        failed = metrics(store)
        proxy.mode = PASS
        clock.sleep_s(301)
        archiver.turn()
        clock.sleep_s(301)
        archiver.turn()

        assert failed["failures_total", "refused" if mode in (FULL, FORBIDDEN) else "away"] >= 1
        assert failed["lag_seconds",] > 60
        assert archived_steps(store) == ["before", "during-0", "during-1", "during-2"]
        assert ("lost_total", "captures") not in {name for name, value in metrics(store).items() if value}
        assert metrics(store)["lag_seconds",] == 0
        assert SECRET not in caplog.text


def wait_for(condition, *, patience_s=60):
    deadline_s = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


def content(path):
    """What is in a file; nothing of a folder, or of one that is gone."""
    with suppress(FileNotFoundError, IsADirectoryError):
        return path.read_bytes()
    return b""


@contextmanager
def sidecar_of(settings, log, *options):
    """Run `taxbreak serve` with these options and its log in a file; gives its address."""
    command = [sys.executable, "-m", "taxbreak_vllm.cli", "serve", "--port", "0", "--no-replay", *options]
    with open(log, "ab") as file:
        process = subprocess.Popen([*command, "--spool", settings.spool], stderr=file, stdin=subprocess.DEVNULL)
    try:
        yield wait_for(lambda: re.findall(r"http://[\d.:]+", log.read_text()))[-1], process
    finally:
        process.kill()
        process.wait()


@pytest.mark.nightly
def test_a_sidecar_answers_while_its_archive_hangs_and_no_key_is_written_anywhere(
    s3, filled, settings, spool, monkeypatch, tmp_path
):
    log = tmp_path / "log"
    with FaultProxy(replace(s3, path=f"{s3.path}/sidecar")) as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        proxy.mode = HANGING
        with sidecar_of(settings, log, "--archive", proxy.endpoint.url) as (url, _):
            wait_for(lambda: proxy.asked)
            for path in ("/metrics", "/healthz", "/v1/taxbreak/status", "/v1/taxbreak/breakdown"):
                assert httpx.get(url + path, timeout=20).status_code == 200
            before = httpx.get(f"{url}/metrics", timeout=20).text
            proxy.mode = FORBIDDEN
            wait_for(lambda: 'taxbreak_archive_failures_total{reason="refused"}' in httpx.get(f"{url}/metrics").text)
            proxy.mode = PASS
            store = Store(proxy.endpoint.url)
            wait_for(lambda: len(archived_steps(store)) == len(spool.captures()))
            after = wait_for(
                lambda: (text := httpx.get(f"{url}/metrics").text).count("taxbreak_archive_lag_seconds 0.0") and text
            )

    assert 'taxbreak_archive_objects_total{kind="captures"}' not in before
    assert float(re.search(r"^taxbreak_archive_lag_seconds (\S+)$", before, re.MULTILINE)[1]) > 0
    assert f'taxbreak_archive_objects_total{{kind="captures"}} {len(spool.captures())}.0' in after
    texts = [*map(content, tmp_path.rglob("*")), before.encode(), after.encode()]
    assert len(texts) > 20
    assert [text for text in texts if SECRET.encode() in text or KEY.encode() in text] == []
    assert "AccessDenied" in log.read_text() or "403" in log.read_text()


def test_serving_with_what_is_no_archive_ends_in_one_line_that_does_not_show_it(taxbreak, tmp_path):
    done = taxbreak("serve", "--spool", str(tmp_path / "spool"), "--archive", "s3://KEY:canary@bucket/x")

    assert done.returncode == 2
    assert done.stderr.startswith("taxbreak: TAXBREAK_ARCHIVE: an archive is s3://BUCKET/PATH")
    assert "canary" not in done.stderr


def archiver_pids(sidecar):
    """The archivers that a sidecar has started and that have not ended."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = path.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == sidecar.pid and b"processes.archiver" in path.joinpath("cmdline").read_bytes():
                yield int(path.name)


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_every_fault_with_archivers_that_are_killed_in_it_loses_nothing_and_puts_nothing_twice(
    s3, spool, settings, monkeypatch, tmp_path
):
    """Real processes, and recordings that the analyzer makes rows of."""
    trace = STEP.joinpath("trace.json.gz").read_bytes()
    template = msgspec.json.decode(STEP.joinpath("step.json").read_bytes(), type=StepInfo)
    names = []

    def record(num):
        for _ in range(num):
            names.append(f"step-{len(names):03d}")
            info = replace(template, step_id=names[-1], started_unix_ns=time.time_ns())
            spool.put(info, lambda path: path.write_bytes(trace))

    def told(what):
        found = re.findall(rf"^taxbreak_archive_{what}.* (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    monkeypatch.setenv("TAXBREAK_ARCHIVE_BATCH_S", "1")
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    endpoint = replace(s3, path=f"{s3.path}/faults")
    store = Store(endpoint.url)
    assert list(store.list(CAPTURES)) == []
    with FaultProxy(endpoint) as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        with sidecar_of(settings, tmp_path / "log", "--archive", endpoint.url) as (url, sidecar):
            for number, mode in enumerate([AWAY, LOST, UNAVAILABLE, FULL, HANGING, FORBIDDEN, SLOW, LOST]):
                failures, met = told("failures_total"), proxy.met[mode]
                proxy.mode = mode
                record(3)
                wait_for(lambda: proxy.met[mode] > met or told("failures_total") > failures)  # noqa: B023
                if number % 3 == 1:
                    for pid in archiver_pids(sidecar):
                        os.kill(pid, signal.SIGKILL)
                record(2)
                proxy.mode = PASS
                wait_for(lambda: len(list(store.list(CAPTURES))) == len(names))
            wait_for(lambda: len(row_ids(store)) >= len(names), patience_s=240)
            num_lost, num_objects = told("lost_total"), told('objects_total{kind="captures"}')

    assert archived_steps(store) == row_ids(store) == names
    assert (num_lost, num_objects) == (0, len(names))
    assert proxy.cut
    assert set(proxy.met) == {PASS, LOST, UNAVAILABLE, FULL, HANGING, FORBIDDEN, SLOW}
