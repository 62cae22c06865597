"""Whatever fails in a hook on a live server: each request is answered, and the account says what has ended."""

import pytest
from rig.faulty_hooks import FAULTS, Faults
from rig.plugins import python_path

from taxbreak_vllm.demo.servers import WORKER_EXTENSION, start_vllm
from taxbreak_vllm.spool.spool import Spool

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(1800)]

# An engine waits once a step here, and is told to drop nothing.
UNUSED = {"engine WAIT_AGAIN0", "engine WAIT_AGAIN1", "traffic abort", "traffic reset"}


@pytest.fixture(scope="module")
def faults(commands):
    return Faults(commands.folder / "faults")


@pytest.fixture(scope="module")
def server(commands, tiny_llama, faults):
    env = {
        "PYTHONPATH": python_path(commands.folder / "plugins"),
        "FAULTY_HOOKS": str(commands.folder / "faults"),
        "VLLM_PLUGINS": "taxbreak,faulty_hooks",
        "TAXBREAK_SPOOL": str(commands.folder / "spool"),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    return start_vllm(commands, tiny_llama, flags=WORKER_EXTENSION, env=env).wait()


@pytest.fixture(scope="module")
def states(commands, server, answers):
    """Return what the server tells of its engine and of its API server, once both have counted something."""
    spool = Spool(commands.folder / "spool", max_bytes=2**30, max_captures=1000)
    server.process.wait_until(
        lambda: answers(server) and spool.engine_states() and spool.frontend_states(), "counting", timeout_s=60
    )

    def read():
        (engine,), (api,) = spool.engine_states(), spool.frontend_states()
        return engine, api

    return read


def has_ended(fault, before, engine, api):
    """Tell a state in which what failed is said not to be counted."""
    where = fault.partition(" ")[0]
    if where == "worker":
        return engine.num_unjoined > before[0].num_unjoined
    reasons = {
        "engine": engine.off_reason,
        "queue": engine.queue_off_reason,
        "traffic": engine.traffic_off_reason,
        "frontend": api.off_reason,
    }
    return reasons[where] == "hook"


@pytest.mark.parametrize("fault", sorted({*FAULTS} - UNUSED))
def test_a_fault_in_a_hook_costs_its_account_and_no_answer(server, faults, states, answers, plain_answers, fault):
    before = states()
    faults.turn_on(fault)
    told = answers(server)
    assert faults.num_raised
    server.process.wait_until(lambda: has_ended(fault, before, *states()), f"saying that {fault} ended", timeout_s=30)
    faults.turn_on(None)
    after = answers(server)

    assert told == plain_answers == after
    counted = states()

    def goes_on():
        engine, api = states()
        return (
            (engine.off_reason, engine.queue_off_reason, engine.traffic_off_reason, api.off_reason) == (None,) * 4
            and engine.num_iterations > counted[0].num_iterations
            and api.num_requests > counted[1].num_requests
        )

    server.process.wait_until(lambda: answers(server) and goes_on(), "counting again", timeout_s=60)
