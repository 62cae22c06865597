"""A newcomer's minute: the page of a server whose tokenizer is slow says so in its first sentence."""

import re

import httpx
import pytest
from rig.knobs import Knobs
from rig.plugins import python_path

from taxbreak_vllm.demo.load import Requests, send
from taxbreak_vllm.demo.servers import WORKER_EXTENSION, start_sidecar, start_vllm

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(900)]

DELAY_NS = 40_000_000  # more than any other stage of such a request takes
ONE_BY_ONE = Requests(num_requests=24, prompt_tokens=40, output_tokens=8, concurrency=1)


@pytest.fixture(scope="module")
def page(commands, tiny_llama):
    """The page of a server whose tokenizer is slow, once it has served some requests."""
    knobs, spool, path = commands.folder / "knobs", commands.folder / "spool", python_path(commands.folder / "plugins")
    Knobs(knobs).turn(tokenizer=DELAY_NS)
    env = {"PYTHONPATH": path, "SLOW_PLACES": str(knobs), "VLLM_PLUGINS": "taxbreak,slow_places"}
    server = start_vllm(commands, tiny_llama, flags=WORKER_EXTENSION, env=env | {"TAXBREAK_SPOOL": str(spool)}).wait()
    sidecar = start_sidecar(commands, spool, env={"PYTHONPATH": path}).wait()
    send(server.url, "tiny-llama", seed=1, rounds=(ONE_BY_ONE,))

    def is_told():
        told = httpx.get(f"{sidecar.url}/v1/taxbreak/requests", timeout=30.0).raise_for_status().json()
        return sum(state["total"]["num"] for state in told["api_servers"]) >= ONE_BY_ONE.num_requests

    server.process.wait_until(is_told, "told of all requests", timeout_s=60)
    return httpx.get(f"{sidecar.url}/", timeout=60.0).raise_for_status().text


def test_it_says_so_in_its_first_sentence(page):
    (sentence,) = re.findall(r'class="lead">([^<]+)', page)
    found = re.fullmatch(
        r"Requests wait ([\d.]+) ms of the ([\d.]+) ms to their first token in the tokenizer \(render\) of the API"
        r" server, before the engine sees them\.",
        sentence,
    )

    assert found, sentence
    assert DELAY_NS / 1e6 <= float(found[1]) < float(found[2])


def test_it_shows_the_device_s_second_and_the_requests(page):
    assert "Where the device's second went" in page
    assert page.count('class="mark"') >= 1
