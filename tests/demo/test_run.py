"""`taxbreak demo` as a user starts it; its temporary folder marks every process that it started."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]

ONE_MODEL = """
import sys
from taxbreak_vllm.demo.models import write_tiny_moe
from taxbreak_vllm.demo.run import run_demo
sys.exit(run_demo(once=True, models={"tiny-moe": write_tiny_moe}))
"""
NO_MODEL = """
import sys
from taxbreak_vllm.demo.run import run_demo
sys.exit(run_demo(once=True, models={"nothing": lambda folder: folder}))
"""


@pytest.fixture
def temporary():
    """A temporary folder of a short name: vLLM's sockets go below it."""
    with tempfile.TemporaryDirectory(prefix="tb-") as folder:
        yield Path(folder)


@pytest.fixture
def start(temporary, tmp_path):
    """Start a script with an empty home and its own temporary folder, and see that it leaves both empty but for logs.

    Ctrl-C is ignored at first, as where a shell starts something in the background.
    """
    env = os.environ | {"HOME": str(tmp_path), "TMPDIR": str(temporary)}

    def start(script):
        command = f"trap '' INT; exec {shlex.quote(sys.executable)} -c {shlex.quote(script)}"
        return subprocess.Popen(
            ["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )

    yield start
    assert [path for path in temporary.iterdir() if path.suffix != ".log"] == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def left_over(temporary):
    """List the processes that still carry this test's temporary folder in their environment."""

    def left_over():
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"TMPDIR={temporary}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue  # gone meanwhile, or not ours
        return found

    return left_over


def test_once_prints_both_phases_and_leaves_no_process(start, left_over):
    demo = start(ONE_MODEL)

    output, progress = demo.communicate()

    assert demo.returncode == 0, progress
    for phase in ("prefill", "decode"):
        (row,) = [line for line in output.splitlines() if line.startswith(f"tiny-moe {phase}")]
        assert 0 < float(re.split(" {2,}", row)[3]) < 1, "HDBI"
    assert "ΔKT is 0 by definition" in output
    assert "The page: http://127.0.0.1:" in output
    assert left_over() == []


@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_vllm_starts_ends_everything(start, left_over, signal_number, status):
    demo = start(ONE_MODEL)
    deadline_s = time.monotonic() + 60
    while not any(b"vllm.entrypoints.cli.main" in command for command in left_over()):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)

    demo.send_signal(signal_number)
    demo.communicate()

    assert demo.returncode == status
    assert left_over() == []


def test_a_server_that_does_not_start_is_shown_with_its_last_words(start, left_over):
    demo = start(NO_MODEL)

    output, progress = demo.communicate()

    assert demo.returncode == 1
    assert "vllm-nothing ended with 1 before healthy" in progress
    assert "Error" in progress
    assert output == ""
    assert left_over() == []
