import os
import signal
import subprocess
import sys

import pytest

from taxbreak_vllm.service.processes.supervisor import Supervisor, analyzer_command


@pytest.fixture
def supervisor(analyzer_command):
    supervisor = Supervisor(analyzer_command)
    yield supervisor
    supervisor.close()


def is_claim_free(spool):
    with spool.claim() as is_free:
        return is_free


def analyzer_pid(supervisor):
    return supervisor._process.pid


def test_an_analyzer_that_is_killed_is_started_again(supervisor, put, spool, until):
    supervisor.start()
    until(lambda: supervisor._process is not None and not is_claim_free(spool))

    os.kill(analyzer_pid(supervisor), signal.SIGKILL)

    capture = put("a")
    until(lambda: capture.is_analyzed)
    assert supervisor.num_restarts == 1


def test_closing_ends_the_analyzer_soon_even_if_it_hangs(supervisor, put, begun, spool, until):
    capture = put("hang", trace=b"slow")
    supervisor.start()
    until(begun)

    supervisor.close()

    assert not capture.is_analyzed  # it was not waited for, which takes a minute
    assert is_claim_free(spool)


def test_starting_twice_starts_one(supervisor, spool, until):
    supervisor.start()
    until(lambda: supervisor._process is not None and not is_claim_free(spool))
    pid = analyzer_pid(supervisor)

    supervisor.start()

    assert analyzer_pid(supervisor) == pid


def test_closing_what_was_never_started_is_nothing():
    Supervisor(["none"]).close()


def test_a_command_that_cannot_run_raises_nothing_and_can_be_closed(until, caplog):
    supervisor = Supervisor(["/no/such/program"])

    supervisor.start()

    until(lambda: "No such file" in caplog.text)
    supervisor.close()


def test_the_command_is_one_that_the_analyzer_understands(settings, spool, until):
    """The real analysis loads, claims the spool, and leaves when its input closes."""
    process = subprocess.Popen(analyzer_command(settings), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        until(lambda: settings.results_path.exists())
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_the_analyzer_dies_with_a_killed_server(analyzer_command, spool, until):
    script = (
        "import sys, time; from taxbreak_vllm.service.processes.supervisor import Supervisor\n"
        "Supervisor(sys.argv[1:]).start(); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, *analyzer_command])
    until(lambda: not is_claim_free(spool))

    parent.kill()
    parent.wait()

    until(lambda: is_claim_free(spool))
