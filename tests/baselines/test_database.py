"""A file that another version wrote is fitted to the tables wanted now, and nothing in it is lost."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from taxbreak_vllm.baselines.database import Schema, StoreError, open_database, transaction

TABLES = """
CREATE TABLE songs (name TEXT PRIMARY KEY, plays INTEGER NOT NULL, "length.s" REAL) WITHOUT ROWID;
CREATE TABLE fans (fan_id INTEGER PRIMARY KEY, name TEXT REFERENCES songs ON DELETE CASCADE);
CREATE INDEX songs_by_plays ON songs (plays);
"""


def schema(tables=TABLES, *, layout=1, anew=()):
    return Schema(kind="songs", layout=layout, tables=tables, known_by="songs", anew=anew)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "songs.sqlite3"
    with opened(path) as db:
        db.execute("INSERT INTO songs (name, plays) VALUES ('a', 7)")
        db.execute("INSERT INTO fans (name) VALUES ('a')")
    return path


def opened(path, wanted=None, **options):
    return closing(open_database(path, wanted or schema(), wait_s=10, **options))


def rows(path, query, wanted=None):
    with opened(path, wanted) as db:
        return db.execute(query).fetchall()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("skips INTEGER", None),
        ("skips INTEGER NOT NULL", 0),
        ("tune TEXT NOT NULL", ""),
        ("skips INTEGER NOT NULL DEFAULT 3", 3),
    ],
)
def test_a_column_that_is_new_is_added_to_the_rows_there_are(path, column, value):
    wider = schema(TABLES.replace("plays INTEGER NOT NULL", f"plays INTEGER NOT NULL, {column}"))
    name = column.split()[0]

    assert rows(path, f"SELECT name, plays, {name} FROM songs", wider) == [("a", 7, value)]
    assert rows(path, f"SELECT name, plays, {name} FROM songs", wider) == [("a", 7, value)]


def test_a_column_that_is_gone_stays_where_rows_can_do_without_it(path):
    narrower = schema(TABLES.replace(', "length.s" REAL', ""))
    with opened(path) as db:
        db.execute('UPDATE songs SET "length.s" = 1.5')

    with opened(path, narrower) as db:
        db.execute("INSERT INTO songs (name, plays) VALUES ('b', 1)")

    assert rows(path, 'SELECT name, plays, "length.s" FROM songs') == [("a", 7, 1.5), ("b", 1, None)]


def test_a_table_that_would_refuse_rows_is_made_anew_with_the_rows_there_are(path):
    without_plays = schema("CREATE TABLE songs (name TEXT PRIMARY KEY, tune TEXT NOT NULL, stars INTEGER);")

    with opened(path, without_plays) as db:
        db.execute("INSERT INTO songs (name, tune) VALUES ('b', 'c')")
        assert db.execute("SELECT name, tune, stars FROM songs").fetchall() == [("a", "", None), ("b", "c", None)]
        assert db.execute("SELECT name FROM fans").fetchall() == [("a",)]  # what hung on the rows still does
        db.execute("DELETE FROM songs")
        assert db.execute("SELECT name FROM fans").fetchall() == []


def test_versions_that_each_have_a_column_of_their_own_may_take_turns(path):
    one = schema(TABLES.replace("plays INTEGER", "skips INTEGER, plays INTEGER"))
    two = schema(TABLES.replace("plays INTEGER", "stars INTEGER, plays INTEGER"))

    for turn, wanted in enumerate((one, two, schema(), one, two)):
        with opened(path, wanted) as db:
            db.execute("INSERT INTO songs (name, plays) VALUES (?, 1)", (f"song {turn}",))

    assert rows(path, "SELECT count(*), sum(plays), max(skips), max(stars) FROM songs") == [(6, 12, None, None)]


def test_an_index_over_more_columns_takes_the_place_of_its_predecessor(path):
    wider = schema(TABLES.replace("ON songs (plays)", "ON songs (plays, name)"))

    for wanted in (wider, schema()):  # a version that needs less of it leaves it
        (plan,) = rows(path, "EXPLAIN QUERY PLAN SELECT name FROM songs ORDER BY plays", wanted)
        assert "COVERING INDEX songs_by_plays" in plan[-1]
        assert rows(path, "SELECT name FROM pragma_index_info('songs_by_plays')", wanted) == [("plays",), ("name",)]


def test_where_columns_mean_something_else_the_tables_named_begin_anew(path):
    newer = schema(TABLES.replace("plays INTEGER NOT NULL", "plays TEXT NOT NULL"), layout=2, anew=("songs",))

    assert rows(path, "SELECT * FROM songs", newer) == []
    assert rows(path, "SELECT name FROM fans", newer) == [("a",)]
    with pytest.raises(StoreError, match=r"songs\.sqlite3: songs of another version of taxbreak \(2\): upgrade"):
        opened(path)


def test_a_file_from_before_there_were_marks_is_known_by_its_tables(tmp_path):
    path = tmp_path / "old.sqlite3"
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE songs (name TEXT PRIMARY KEY); INSERT INTO songs VALUES ('a');")
        db.execute("PRAGMA user_version = 1")
        db.commit()

    assert rows(path, "SELECT name, plays FROM songs") == [("a", 0)]


@pytest.mark.parametrize("kind", ["not ours", "of another kind"])
def test_another_database_is_refused_and_left_as_it_is(tmp_path, kind):
    path = tmp_path / "other.sqlite3"
    if kind == "not ours":
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE songs (name)")  # of the same name, but nobody counted its layouts
    else:
        other = Schema(kind="films", layout=1, tables="CREATE TABLE songs (name TEXT);", known_by="songs")
        opened(path, other).thing.close()
    before = path.read_bytes()

    with pytest.raises(StoreError, match=r"other\.sqlite3: a database, but not of songs"):
        opened(path)

    assert path.read_bytes() == before


def test_a_file_that_cannot_be_fitted_is_one_line_and_left_as_it_is(path):
    """Of two rows with the key that is wanted now, neither may go."""
    with opened(path) as db:
        db.execute("INSERT INTO songs (name, plays) VALUES ('b', 7)")

    with pytest.raises(StoreError, match=r"songs\.sqlite3: cannot use the songs: UNIQUE") as error:
        opened(path, schema("CREATE TABLE songs (name TEXT, plays INTEGER PRIMARY KEY);"))

    assert "\n" not in str(error.value)
    assert rows(path, "SELECT name, plays FROM songs ORDER BY name") == [("a", 7), ("b", 7)]


def test_processes_that_find_an_old_file_at_once_fit_it_once(path):
    wider = TABLES.replace("plays INTEGER", "skips INTEGER, plays INTEGER")
    script = (
        "import sys; from pathlib import Path; from taxbreak_vllm.baselines.database import Schema, open_database\n"
        "schema = Schema(kind='songs', layout=1, tables=sys.argv[2], known_by='songs')\n"
        "sys.stdin.read()\n"
        "open_database(Path(sys.argv[1]), schema, wait_s=10).execute('UPDATE songs SET plays = plays + 1')"
    )
    command = [sys.executable, "-c", script, str(path), wider]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]

    for process in processes:
        process.stdin.close()
        process.stdin = None
    said = [process.communicate(timeout=60)[1] for process in processes]

    assert said == [""] * 6
    assert rows(path, "SELECT name, plays, skips FROM songs", schema(wider)) == [("a", 13, None)]


def test_a_transaction_that_fails_leaves_nothing(path):
    def change(db):
        with transaction(db):
            db.execute("UPDATE songs SET plays = 0")
            db.execute("INSERT INTO songs (name, plays) VALUES ('a', 1)")

    with opened(path) as db:
        with pytest.raises(sqlite3.IntegrityError):
            change(db)

        assert db.execute("SELECT plays FROM songs").fetchall() == [(7,)]
