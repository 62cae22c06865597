"""Whatever part of ours raises inside a live worker, each request is answered and the counter names the reason."""

import os
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from taxbreak_vllm.demo.load import send
from taxbreak_vllm.demo.servers import RunningServer, start_vllm

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(1200)]

REASONS = {
    "StepKinds.of_step": "hook",
    "StepKind.add": "hook",
    "StepKind.median": "hook",
    "Sampler.decide": "hook",
    "Policy.allows": "hook",
    "Policy.detail": "hook",
    "classify": "hook",
    "SampledTokens.follow": "hook",
    "Outbox.offer": "hook",
    "TorchProfile.open": "profiler",
    "TorchProfile.start": "profiler",
    "TorchProfile.stop": "profiler",
    "TorchProfile.export": "export",
    "Spool.put": "export",
    "Spool.put_state": "outbox",
    "Spool.read_request": "outbox",
    "Policy.settle": "outbox",
    "Policy.follow": "outbox",
    "StepKinds.histograms": "outbox",
}

# While these fail the worker cannot say what it counts, or not anew; it does before its successor takes over.
UNHEARD = {"Spool.put_state", "StepKinds.histograms", "Policy.settle", "Policy.follow", "Spool.read_request"}

_SEEDS = iter(range(1, 10**6))


@dataclass
class Breakable:
    """A server whose worker has parts that can be broken, and the sidecar on its spool."""

    server: RunningServer
    watched: object
    control: Path

    def load_until(self, condition, what):
        def is_true():
            send(self.server.url, "tiny-llama", seed=next(_SEEDS))
            return condition()

        self.watched.wait_until(is_true, what)

    def turn_to(self, wanted):
        new = self.control.with_suffix(".new")
        new.write_text(wanted)
        new.replace(self.control)

    def goes_on(self):
        before = self.watched.value("sampled_steps_total")
        self.load_until(lambda: self.watched.value("sampled_steps_total") > before, "sampling again")
        self.watched.settle()


@pytest.fixture(scope="module")
def misspelt(processes, tiny_llama):
    """A server with a setting of ours that there is not, on its way."""
    env = {"TAXBREAK_SPOOL": str(processes.folder / "spool-of-none"), "TAXBREAK_SAMPLE_EVRY": "2"}
    return start_vllm(processes, tiny_llama, env=env, name="vllm-misspelt")


@pytest.fixture(scope="module")
def breakable(processes, tiny_llama, sample_often, watch_spool, misspelt):
    spool, control = processes.folder / "spool", processes.folder / "control"
    control.touch()
    here = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    env = sample_often | {"TAXBREAK_SPOOL": str(spool), "FAULTY_CONTROL": str(control), "PYTHONPATH": here}
    flags = ("--worker-extension-cls", "faulty_worker.FaultyExtension")
    server = start_vllm(processes, tiny_llama, env=env, flags=flags)
    watched = watch_spool(processes, spool)
    return Breakable(server.wait(), watched, control)


@pytest.mark.parametrize(("part", "reason"), REASONS.items())
def test_a_part_of_ours_that_raises_costs_samples_and_no_answer(breakable, answers, plain_answers, part, reason):
    before = breakable.watched.dropped(reason)

    breakable.turn_to(part)
    told = answers(breakable.server)
    if part not in UNHEARD:
        breakable.load_until(lambda: breakable.watched.dropped(reason) > before, f"counting {reason}")
    breakable.turn_to("")

    assert told == plain_answers
    breakable.goes_on()
    assert breakable.watched.dropped(reason) > before


def test_a_clock_that_steps_back_under_the_worker_loses_no_step_and_counts_none_twice(
    breakable, answers, plain_answers
):
    breakable.goes_on()
    plain = breakable.watched.value("steps_total")

    breakable.turn_to("clock -7200")

    assert answers(breakable.server) == plain_answers
    breakable.load_until(lambda: breakable.watched.value("steps_total") > plain, "timing steps")
    breakable.turn_to("")
    breakable.goes_on()
    url = f"{breakable.watched.sidecar.url}/v1/taxbreak/captures"
    servers = breakable.watched.get("/v1/taxbreak/status").json()["servers"]
    newest = max(servers, key=lambda state: state["started_unix_ns"])["server"]["server_id"]
    asked = httpx.post(url, json={"steps": 4, "server_id": newest}, timeout=30.0).raise_for_status().json()
    breakable.load_until(
        lambda: breakable.watched.get(f"/v1/taxbreak/captures/{asked['id']}").json()["analyzed"] == 4, "captured"
    )


def test_an_unknown_setting_leaves_the_server_without_us(misspelt, processes, answers, plain_answers):
    server = misspelt.wait()

    assert answers(server) == plain_answers
    log = server.process.log.read_text().splitlines()
    assert len([line for line in log if "WARNING" in line and "TAXBREAK_SAMPLE_EVRY" in line]) == 1
    assert not (processes.folder / "spool-of-none").exists()
    server.process.stop()
