"""The sidecar in vLLM's pods outlives its own crashes and ends at once with the pod."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

PATCH = Path(__file__).parents[2] / "deploy" / "helm" / "taxbreak-vllm" / "templates" / "patch.yaml"
TAXBREAK = '#!/bin/sh\necho $$ >>"$STARTED"\nexec sleep 60\n'


@pytest.fixture
def loop(tmp_path):
    """The command of the chart's patch, with a stand-in for `taxbreak serve` that only waits; and who was started."""
    program = tmp_path / "taxbreak"
    program.write_text(TAXBREAK)
    program.chmod(0o755)
    started = tmp_path / "started"
    started.touch()
    (script,) = re.findall(r"^ +- (trap .*)$", PATCH.read_text(), flags=re.MULTILINE)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STARTED": str(started)}
    process = subprocess.Popen(["sh", "-c", script], env=env)
    yield process, lambda: [int(pid) for pid in started.read_text().split()]
    process.kill()
    process.wait()


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def until(condition, timeout_s=60):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not true in time"
        time.sleep(0.02)


def test_it_starts_again_after_a_crash_and_ends_with_the_pod(loop):
    process, started = loop
    until(lambda: len(started()) == 1)
    os.kill(started()[0], signal.SIGKILL)
    until(lambda: len(started()) == 2)

    process.terminate()

    assert process.wait(timeout=60) == 0
    until(lambda: not is_running(started()[1]))
