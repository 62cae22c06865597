"""Whatever is wrong on our side, a server with the flag starts, says so once, and answers as it would without us."""

import pytest

from taxbreak_vllm.demo.servers import start_vllm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def _warnings(server):
    return [line for line in server.process.log.read_text().splitlines() if "WARNING" in line and "taxbreak" in line]


def test_a_spool_that_cannot_be_written_costs_the_captures_and_nothing_else(
    processes, tiny_llama, answers, plain_answers
):
    a_file = processes.folder / "a-file"
    a_file.touch()
    env = {"TAXBREAK_SPOOL": str(a_file / "spool"), "TAXBREAK_SAMPLE_EVERY": "2"}

    server = start_vllm(processes, tiny_llama, env=env, name="vllm-unwritable").wait()

    assert answers(server) == plain_answers
    assert any(str(a_file) in line for line in _warnings(server))
    server.process.stop()


def test_an_unknown_setting_leaves_the_server_without_us(processes, tiny_llama, answers, plain_answers):
    spool = processes.folder / "spool"
    env = {"TAXBREAK_SPOOL": str(spool), "TAXBREAK_SAMPLE_EVRY": "2"}

    server = start_vllm(processes, tiny_llama, env=env, name="vllm-misspelt").wait()

    assert answers(server) == plain_answers
    assert len([line for line in _warnings(server) if "TAXBREAK_SAMPLE_EVRY" in line]) == 1
    assert not spool.exists()
    server.process.stop()
