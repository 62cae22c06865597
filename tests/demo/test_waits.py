"""The demo waits with a bar on a terminal and with lines elsewhere, and for nothing without end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import run_on_terminal, without_escapes

# What stands for vLLM says two lines; it never answers, or it ends.
DEMO = """
import os, sys
from taxbreak_vllm.demo.run import run_demo
from taxbreak_vllm.demo.servers import RunningServer

def serve(processes, model, spool):
    process = processes.start("vllm-nothing", ["sh", "-c", "echo loading; echo weights; {then}"], env=os.environ)
    return RunningServer(process, "http://127.0.0.1:9", "/health", start_s=1.5)

sys.exit(run_demo(once=True, models={{"nothing": lambda folder: folder}}, serve=serve))
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return lambda then: [sys.executable, "-c", DEMO.format(then=then)]


def kept(said: str, folder: Path) -> str:
    """Read the one thing that is left of a run, the log it names in its last line."""
    path = re.search(r"the log is kept as (\S+)\n$", said)[1]
    assert [str(entry) for entry in folder.iterdir()] == [path]
    return Path(path).read_text()


def test_a_wait_that_lasts_too_long_ends_in_one_line_with_what_it_was_for_and_where_the_log_is(command, tmp_path):
    done = subprocess.run(command("exec sleep 600"), capture_output=True, text=True, check=False)

    *before, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert last.startswith("vllm-nothing: not healthy within 2 s; the log is kept as ")
    assert before[-1] == "nothing: vLLM starts with our extension, at most 600 s …"
    assert "\x1b" not in done.stderr
    assert kept(done.stderr, tmp_path) == "loading\nweights\n"


def test_a_server_that_ends_is_shown_with_its_last_words(command, tmp_path):
    done = subprocess.run(command("exit 3"), capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "vllm-nothing ended with 3 before healthy:\nloading\nweights; the log is kept as" in done.stderr
    assert kept(done.stderr, tmp_path) == "loading\nweights\n"


def test_on_a_terminal_there_is_a_bar_over_the_last_words_of_the_log(command, tmp_path):
    done = run_on_terminal(command("exec sleep 600"), columns=80)

    said = without_escapes(done.stdout)
    assert done.returncode == 1
    assert re.search(r"nothing: vLLM starts with our extension ━.* 1/3 0:00:0\d of 0:10:00", said)
    assert "weights" in said
    assert all(len(line) <= 80 for part in said.splitlines() for line in part.split("\r") if "log is kept" not in line)
    assert kept(said, tmp_path) == "loading\nweights\n"
