"""Whatever way the starter goes, its processes go with it, and no other process does."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from taxbreak_vllm.demo.processes import Process, ProcessError, Processes

GRACE_S = 0.5

# A leader that prints itself and its descendants: a plain one, one deaf to SIGTERM, and one that left the session.
FAMILY = """
echo $$
sleep 600 & echo $!
(trap '' TERM; exec sleep 600) & echo $!
setsid sh -c 'echo $$; exec sleep 600' &
sleep 600
"""


@pytest.fixture
def start(tmp_path):
    with Processes(tmp_path, grace_s=GRACE_S) as processes:
        yield lambda script, name="child": processes.start(name, ["sh", "-c", script], env=os.environ)


def _pids(process, count=4):
    process.wait_until(lambda: len(process.tail().split()) >= count, "all started", timeout_s=60)
    return [int(word) for word in process.tail().split()]


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _wait_until_gone(pids, timeout_s=60.0):
    deadline_s = time.monotonic() + timeout_s
    while any(map(_is_running, pids)) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not any(map(_is_running, pids))


def test_stop_ends_every_descendant_even_one_that_ignores_sigterm_or_left_the_session(start):
    process = start(FAMILY)
    pids = _pids(process)
    assert all(map(_is_running, pids))

    process.stop()

    assert not any(map(_is_running, pids))


def test_what_a_command_leaves_behind_ends_with_it(start):
    process = start("sleep 600 & echo $!; exit 7")

    assert _wait_until_gone(_pids(process, 1))
    assert process.stop() == 7


def test_leaving_the_context_by_an_error_ends_everything(tmp_path):
    with suppress(RuntimeError), Processes(tmp_path, grace_s=GRACE_S) as processes:
        pids = _pids(processes.start("child", ["sh", "-c", FAMILY], env=os.environ))
        raise RuntimeError("on the way")

    assert not any(map(_is_running, pids))


def test_a_starter_that_is_killed_takes_its_processes_along(tmp_path):
    script = (
        "import os, sys, time; from pathlib import Path; from taxbreak_vllm.demo.processes import Process\n"
        f"command, grace_s = ['sh', '-c', {FAMILY!r}], {GRACE_S}\n"
        "child = Process('child', command, env=os.environ, log=Path(sys.argv[1]), grace_s=grace_s)\n"
        "time.sleep(600)"
    )
    log = tmp_path / "child.log"
    starter = subprocess.Popen([sys.executable, "-c", script, str(log)])
    deadline_s = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().split()) == 4) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    pids = [int(word) for word in log.read_text().split()]

    starter.send_signal(signal.SIGKILL)
    starter.wait()

    assert len(pids) == 4
    assert _wait_until_gone(pids)


def test_no_other_process_is_ended(start):
    mine = start("echo $$; exec sleep 600", "mine")
    bystander = start("echo $$; exec sleep 600", "bystander")
    pids = _pids(bystander, 1)
    _pids(mine, 1)

    mine.stop()

    assert all(map(_is_running, pids))
    assert bystander.is_alive


def test_a_command_that_ends_too_early_is_reported_with_its_last_words(start):
    process = start("echo no such model >&2; exit 3")

    with pytest.raises(ProcessError, match=r"child ended with 3 before healthy:\nno such model"):
        process.wait_until(lambda: False, "healthy", timeout_s=60)


def test_a_command_that_stays_silent_is_reported_when_the_time_is_over(start):
    process = start("echo still thinking; exec sleep 600")
    process.wait_until(lambda: process.tail() != "", "talking", timeout_s=60)

    with pytest.raises(ProcessError, match=r"child: not healthy within 0 s:\nstill thinking"):
        process.wait_until(lambda: False, "healthy", timeout_s=0)


def test_a_program_that_does_not_exist_is_an_exit_not_a_hang(tmp_path):
    process = Process("ghost", [str(tmp_path / "ghost")], env=os.environ, log=tmp_path / "ghost.log")

    with pytest.raises(ProcessError, match="ghost ended with 1"):
        process.wait_until(lambda: False, "healthy", timeout_s=60)
    process.stop()
