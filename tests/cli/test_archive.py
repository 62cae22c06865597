"""`taxbreak archive`: what a spool holds goes to an archive, and the exit says whether all of it is there."""

import gzip
import json
from pathlib import Path

import pytest

from taxbreak_vllm.archive.bundle import info_of
from taxbreak_vllm.archive.layout import CAPTURES
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.spool.spool import Spool

TRACE = Path(__file__).parents[1] / "data" / "serving.json"


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool", max_bytes=10**9, max_captures=100)
    for number in range(3):
        info = StepInfo(
            step_id=f"a-{number}",
            step_index=number,
            server=Server(server_id="vllm-a", model_name="tiny"),
            phase=Phase.DECODE,
            batch=Batch(),
            graph_mode=GraphMode.NONE,
            started_unix_ns=1_700_000_000 * 10**9,
            window_ns=10**6,
        )
        spool.put(info, lambda path: path.write_bytes(gzip.compress(TRACE.read_bytes())))
    return spool


def test_all_of_a_spool_is_archived_once(taxbreak, spool, tmp_path):
    (tmp_path / "share").mkdir()
    url = f"file://{tmp_path}/share"

    first, second = (taxbreak("archive", str(spool.root), url, "--json") for _ in range(2))

    assert (first.returncode, second.returncode) == (0, 0)
    assert [json.loads(done.stdout)["objects"] for done in (first, second)] == [3, 0]
    assert json.loads(first.stdout)["steps_left"] == 3
    store = Store(url)
    assert sorted(info_of(store.get(key)).step_id for key in store.list(CAPTURES)) == ["a-0", "a-1", "a-2"]
    said = taxbreak("archive", str(spool.root), url)
    words = f"{url}: 0 objects more, 0 MB 3 steps wait for their analysis: the next run adds their rows"
    assert "".join(said.stdout.split()) == "".join(words.split())  # a long path is folded


@pytest.mark.parametrize(
    ("folder", "url", "code", "words"),
    [
        ("spool", "file:///no/such/folder", 1, "no such folder here"),
        ("spool", "ftp://host/x", 2, "an archive is s3://BUCKET/PATH"),
        ("elsewhere", "file:///", 2, "no spool"),
    ],
)
def test_what_cannot_be_archived_is_one_line(taxbreak, spool, tmp_path, folder, url, code, words):
    done = taxbreak("archive", str(tmp_path / folder), url)

    assert done.returncode == code
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_spool_that_a_sidecar_archives_is_left_to_it(taxbreak, spool, tmp_path):
    with spool.claim("archiver"):
        done = taxbreak("archive", str(spool.root), f"file://{tmp_path}")

    assert done.returncode == 2
    assert "another process archives it" in done.stderr


def test_two_hosts_share_baselines(taxbreak, tmp_path):
    (tmp_path / "share").mkdir()

    done = taxbreak(
        "baselines", "sync", f"file://{tmp_path}/share", "--baselines", str(tmp_path / "own.sqlite3"), "--json"
    )

    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "action": "sync",
        "entries": 0,
        "environments": [],
        "taken": 0,
        "given": 0,
        "damaged": [],
    }
