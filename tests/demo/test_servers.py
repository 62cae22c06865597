"""A sidecar takes the port it is told to, unless somebody else has it."""

import socket

import httpx
import pytest

from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import HOST, start_sidecar


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path) as processes:
        yield processes


@pytest.fixture
def somebody():
    """A socket with a port of its own, listening."""
    with socket.create_server((HOST, 0)) as somebody:
        yield somebody


def test_a_port_that_is_free_is_taken(processes, somebody, tmp_path):
    port = somebody.getsockname()[1]
    somebody.close()

    sidecar = start_sidecar(processes, tmp_path / "spool", port=port).wait()

    assert sidecar.url == f"http://{HOST}:{port}"
    assert httpx.get(sidecar.url + "/healthz", timeout=60).is_success


def test_beside_somebody_who_has_the_port_another_is_taken(processes, somebody, tmp_path):
    port = somebody.getsockname()[1]

    sidecar = start_sidecar(processes, tmp_path / "spool", port=port).wait()

    assert sidecar.url != f"http://{HOST}:{port}"
    assert httpx.get(sidecar.url + "/healthz", timeout=60).is_success
