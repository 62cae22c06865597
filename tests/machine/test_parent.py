"""A process ends with the one that started it, whichever way that goes and whoever else holds the pipe."""

import os
import signal
import subprocess
import sys

import pytest

END_IN_ORDER = """
import sys, time
from taxbreak_vllm.machine.parent import end_with_parent
end_with_parent()
try:
    print("ready", flush=True)
    time.sleep(600)
finally:
    print("in order", flush=True)
"""
DIE = """
import time
from taxbreak_vllm.machine.parent import die_with_parent
die_with_parent()
print("ready", flush=True)
time.sleep(600)
"""
# Its second child inherits the write end of the first one's standard input, and outlives everyone.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
holder = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, pass_fds=[child.stdin.fileno()])
print(holder.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize(("script", "last_words"), [(END_IN_ORDER, ["in order"]), (DIE, [])])
def test_a_parent_that_is_killed_takes_its_child_along_though_another_holds_the_pipe(script, last_words):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, script], stdout=subprocess.PIPE, text=True)
    first, second = (parent.stdout.readline().strip() for _ in range(2))
    holder = int(second if first == "ready" else first)
    try:
        parent.kill()

        said = parent.communicate(timeout=30)[0]  # ends when the child, which has our pipe too, has ended
    finally:
        os.kill(holder, signal.SIGKILL)

    assert said.split("\n")[:-1] == last_words


def test_a_closed_input_ends_a_process_in_order():
    child = subprocess.Popen(
        [sys.executable, "-c", END_IN_ORDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"

    said, _ = child.communicate(timeout=30)

    assert (said, child.returncode) == ("in order\n", 0)
