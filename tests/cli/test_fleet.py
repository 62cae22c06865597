"""`taxbreak fleet`: captures of an archive analyzed and told of; what cannot be is one line and exit 2."""

import json

import pytest
from rig.fleet import Fleet, fill

from taxbreak_vllm.archive.store import Store


@pytest.fixture
def url(tmp_path):
    (tmp_path / "archive").mkdir()
    url = f"file://{tmp_path}/archive"
    fill(Store(url), Fleet(num_hosts=2, num_captures=4).captures())
    return url


def test_what_is_analyzed_once_is_reported_as_table_json_and_page(taxbreak, url, tmp_path):
    first = taxbreak("fleet", "analyze", url, "--jobs", 1)
    again = taxbreak("fleet", "analyze", url, "--jobs", 1)
    done = taxbreak("fleet", "report", url, "--by", "host", "--html", tmp_path / "fleet.html", "--json")

    assert "8 captures: 8 analyzed, 0 before, 0 set aside" in first.stderr
    assert "8 captures: 0 analyzed, 8 before, 0 set aside" in again.stderr
    assert "8 recorded steps of 4 servers on 2 hosts" in again.stdout
    found = json.loads(done.stdout)
    assert (found["schema"], found["num_captures"]) == ("taxbreak.fleet-report/1", 8)
    assert [group["by"] for group in found["groups"]] == [{"host": "node-0000"}, {"host": "node-0001"}]
    assert "node-0001" in (tmp_path / "fleet.html").read_text()
    assert "tiny-llama" in taxbreak("fleet", "report", url).stdout


def test_before_an_analysis_the_report_says_what_makes_one(taxbreak, url):
    done = taxbreak("fleet", "report", url)

    assert done.returncode == 0
    assert "taxbreak fleet analyze" in " ".join(done.stdout.split())


@pytest.mark.parametrize("command", ["analyze", "report"])
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--since", "yesterday"), "--since yesterday: say 7d, 2w, or a day"),
        (("--since", "2026-13-01"), "--since 2026-13-01: say"),
        (("--by", "kernel"), "--by kernel: choose among model, vllm, gpu, host"),
    ],
    ids=["no time", "no day", "no column"],
)
def test_what_cannot_be_read_is_one_line_and_exit_2(taxbreak, url, command, words, reason):
    done = taxbreak("fleet", command, url, *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_no_archive_is_one_line_and_exit_2(taxbreak):
    done = taxbreak("fleet", "report", "ftp://somewhere")

    assert done.returncode == 2
    assert done.stderr.startswith("taxbreak: an archive is s3://")
