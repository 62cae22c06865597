"""Each capture of an archive is analyzed once, whatever dies; what cannot be is named, and nothing old is changed."""

import io
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rig.fleet import BEGIN_NS, DAY_NS, Fleet, fill, killed_by, killed_once

from taxbreak_vllm.archive.layout import CAPTURES, Key
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.fleet.analyze import analyze, plan, set_aside_by
from taxbreak_vllm.fleet.batch import ANALYSES, BROKEN, Batch, analyze_batch
from taxbreak_vllm.fleet.pool import outcomes
from taxbreak_vllm.fleet.steps import read_steps
from taxbreak_vllm.fleet.table import schema
from taxbreak_vllm.model.errors import Away

SMALL = Fleet(num_hosts=2, num_captures=6)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "archive").mkdir()
    return Store(f"file://{tmp_path}/archive")


def objects(store):
    """Every object by its path, with its content."""
    root = Path(store.url.removeprefix("file://"))
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def in_this_process(store, version="1", **choice):
    found = plan(store, version, **choice)
    return found, [analyze_batch(batch) for batch in found.batches]


def broken_of(store, version="1"):
    return list(set_aside_by(store, version))


def damage(store, template, data):
    """Put an object among the captures that is none."""
    key = Key.of(
        CAPTURES,
        data,
        suffix="tar",
        unix_ns=BEGIN_NS,
        model=template.model,
        vllm=template.vllm,
        gpu=template.gpu,
        server=template.server,
    )
    store.put(key, data)
    return key


def test_every_capture_has_one_row_with_its_figures(store):
    keys = fill(store, SMALL.captures())

    in_this_process(store)

    (row, *_) = rows = [row for data in parts(store) for row in pq.read_table(io.BytesIO(data)).to_pylist()]
    assert sorted(row["capture"] for row in rows) == sorted(key.digest for key in keys)
    assert (row["phase"], row["model"], row["governor"], row["tokens"]) == ("decode", "tiny-llama", "performance", 4)
    assert 0 < row["delta_ft_ns"] < row["step_ns"]
    assert row["hdbi"] == pytest.approx(row["active_ns"] / (row["active_ns"] + row["orchestration_ns"]))
    assert "reason" in row


def parts(store, version="1"):
    return [store.get(key) for key in store.list(ANALYSES.format(version))]


def test_a_second_run_finds_nothing_to_do_and_changes_nothing(store):
    fill(store, SMALL.captures())
    in_this_process(store)
    before = objects(store)

    found, _ = in_this_process(store)

    assert (list(found.batches), found.num_known, found.num_found) == ([], 12, 12)
    assert objects(store) == before


def test_what_came_later_is_analyzed_alone(store):
    first, *later = SMALL.captures()
    fill(store, iter([first]))
    in_this_process(store)
    fill(store, iter(later))

    found, _ = in_this_process(store)

    assert (found.num_known, sum(len(batch.captures) for batch in found.batches)) == (1, 11)
    assert len(read_steps(store, "1")) == 12


def test_another_version_leaves_the_rows_of_the_first_as_they_are(store):
    fill(store, SMALL.captures())
    in_this_process(store, "1")
    before = objects(store)

    in_this_process(store, "2")

    assert objects(store).items() > before.items()
    assert len(read_steps(store, "2")) == len(read_steps(store, "1")) == 12


def test_rows_that_two_runs_made_at_once_count_once(store):
    keys = fill(store, SMALL.captures())
    found = plan(store, "1")
    for batch in (*found.batches, Batch(store.url, "1", tuple(keys[:3]))):
        analyze_batch(batch)

    assert len(read_steps(store, "1")) == 12


def test_a_broken_capture_is_named_and_the_others_are_analyzed(store):
    keys = fill(store, SMALL.captures())
    bad = damage(store, keys[0], b"no capture")

    _, done = in_this_process(store)

    (broken,) = broken_of(store)
    assert (broken.capture, broken.key) == (bad.digest, bad.path)
    assert broken.reason.startswith("no capture")
    assert sum(outcome.num_analyzed for outcome in done) == 12
    assert list(plan(store, "1").batches) == []


def test_days_and_models_are_chosen(store):
    fill(store, SMALL.captures())
    day = next(iter(store.list(CAPTURES))).date.fromtimestamp((BEGIN_NS + DAY_NS) // 10**9)

    found, _ = in_this_process(store, since=day)

    assert 0 < found.num_found < 12
    assert plan(store, "1", model="other").num_found == 0
    assert plan(store, "1", model="tiny-llama").num_known == found.num_found


def test_processes_that_stay_make_the_same_objects(store, tmp_path):
    fill(store, SMALL.captures())
    in_this_process(store)
    here = objects(store)
    (tmp_path / "other").mkdir()
    other = Store(f"file://{tmp_path}/other")
    fill(other, SMALL.captures())

    count, broken = analyze(plan(other, "1"), jobs=2)

    assert (count.num_analyzed, count.num_done, broken) == (12, 12, [])
    assert objects(other) == here


def test_a_capture_that_kills_its_process_is_set_aside_and_no_other(store):
    keys = fill(store, Fleet(num_hosts=1, num_captures=4).captures())[:2]

    done = list(outcomes([Batch(store.url, "1", tuple(keys))], 1, partial(killed_by, keys[1].digest)))

    (broken,) = broken_of(store)
    assert (broken.capture, sum(outcome.num_analyzed for outcome in done)) == (keys[1].digest, 1)
    assert "died" in broken.reason
    assert len(read_steps(store, "1")) == 1


def test_processes_that_cannot_begin_are_no_fault_of_a_capture(store):
    """A program that comes from standard input cannot be loaded again by a process of its own."""
    fill(store, Fleet(num_hosts=1, num_captures=2).captures())
    program = (
        "from taxbreak_vllm.archive.store import Store; from taxbreak_vllm.fleet.analyze import analyze, plan\n"
        f"analyze(plan(Store({store.url!r}), '1'), jobs=1)"
    )

    done = subprocess.run([sys.executable, "-"], input=program, text=True, capture_output=True)

    assert "end before they begin" in done.stderr.splitlines()[-1]
    assert broken_of(store) == []


@pytest.mark.nightly
def test_a_process_that_is_killed_once_costs_nothing(store, tmp_path):
    fill(store, SMALL.captures())

    done = list(outcomes(plan(store, "1").batches, 2, partial(killed_once, tmp_path / "killed")))

    assert (tmp_path / "killed").exists()
    assert sum(outcome.num_analyzed for outcome in done) == 12
    assert list(store.list(BROKEN.format("1"))) == []


def test_an_archive_that_is_away_ends_it_and_it_goes_on_later(store, monkeypatch):
    fill(store, SMALL.captures())
    first, second, *_ = plan(store, "1").batches
    analyze_batch(first)

    def away(self, key):
        raise Away("gone")

    with monkeypatch.context() as gone:
        gone.setattr(Store, "get", away)
        with pytest.raises(Away):
            analyze_batch(second)

    in_this_process(store)
    assert len(read_steps(store, "1")) == 12
    assert list(store.list(BROKEN.format("1"))) == []


def test_more_rows_than_fit_are_thinned_by_chance_and_that_is_said(store):
    fill(store, SMALL.captures())
    in_this_process(store)

    steps = read_steps(store, "1", max_rows=5)

    assert steps.every > 1
    assert len(steps) <= 5


def test_every_column_of_the_table_is_documented_with_its_type():
    page = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
    listed = {
        line.split("|")[1].strip().strip("`"): line.split("|")[2].strip()
        for line in page.splitlines()
        if line.startswith("| `")
    }

    assert {field.name: str(field.type) for field in schema() if field.name != "predicted"}.items() <= listed.items()
