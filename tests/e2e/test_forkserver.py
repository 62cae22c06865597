"""A fork is to the tests what a command of its own would be, and none outlives them; shown without vLLM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taxbreak_vllm.demo.processes import Processes

SCRIPT = """
import json, os, subprocess, sys
umask = os.umask(0)
print(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "umask": umask}))
if sys.argv[1] == "stay":
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(os.getpid(), child.pid, flush=True)
    child.wait()
sys.exit(7)
"""

# Tests that start a fork and are killed.
KILLED = """
import os, sys, time
from pathlib import Path
from forkserver import Fork
folder = Path(sys.argv[1])
command = [str(folder / "script.py"), "stay"]
mine = Fork("mine", command, env=os.environ, log=folder / "mine.log", address=folder / "address")
time.sleep(600)
"""


@pytest.fixture
def start(forkserver, tmp_path):
    """Return what starts the script as a fork of a process that imported no more than it needs."""
    (tmp_path / "script.py").write_text(SCRIPT)
    address = tmp_path / "address"
    with Processes(tmp_path) as processes:
        listening = processes.start("listening", [sys.executable, forkserver.__file__, str(address)], env=os.environ)
        listening.wait_until(address.exists, "listening", timeout_s=30)

        def start(*arguments, env=os.environ):
            command = [str(tmp_path / "script.py"), *arguments]
            return forkserver.Fork("fork", command, env=env, log=tmp_path / "fork.log", address=address)

        yield start


def _pids(log):
    """Wait for the two numbers in the log: the script's and its child's."""
    deadline_s = time.monotonic() + 30
    while not (log.exists() and len(lines := log.read_text().splitlines()) == 2):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return [int(word) for word in lines[1].split()]


def _wait_until_gone(pids):
    deadline_s = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_it_has_the_arguments_the_environment_and_the_umask_of_its_starter(start):
    before = os.umask(0o27)
    try:
        fork = start("go", "--flag", env={"PATH": os.environ["PATH"], "MARK": "1"})
    finally:
        os.umask(before)

    while fork.is_alive:
        time.sleep(0.02)

    told = json.loads(fork.tail())
    assert told["argv"] == ["go", "--flag"]
    assert (told["env"].keys() & {"MARK", "HOME"}, told["umask"], told["cwd"]) == ({"MARK"}, 0o27, os.getcwd())
    assert fork.stop() == 7


def test_stop_ends_it_and_all_it_started(start, tmp_path):
    fork = start("stay")
    pids = _pids(tmp_path / "fork.log")

    fork.stop()

    _wait_until_gone(pids)


def test_tests_that_are_killed_take_their_forks_along(start, forkserver, tmp_path):
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(forkserver.__file__).parent), os.environ.get("PYTHONPATH", "")])
    }
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=env) as killed:
        try:
            pids = _pids(tmp_path / "mine.log")
        finally:
            killed.send_signal(signal.SIGKILL)

    _wait_until_gone(pids)
