"""Every phase the CPU build can run, on a real vLLM: chunked prefill, mixed steps, drafts, prefix hits, preemption.

The tokens of a step are few, so that prompts come in chunks; the cache is small, so that requests are preempted.
"""

import json

import pytest

from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.spool.spool import Spool

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(600)]

CHUNK = 32
NUM_DRAFTS = 3
PHASES = ("prefill", "mixed", "decode", "verify")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("phases")


@pytest.fixture(scope="module")
def said(folder, tiny_llama, run_offline):
    """Run the script; return the steps by phase, and what vLLM itself counted, of each of its parts."""
    settings = {"TAXBREAK_ENABLED": "false", "TAXBREAK_SAMPLE_EVERY": "4", "TAXBREAK_MAX_STEP_S": "60"}
    run_offline("offline_phases.py", folder, tiny_llama, folder, VLLM_ENABLE_V1_MULTIPROCESSING="0", **settings)
    return json.loads((folder / "said.json").read_text())


@pytest.fixture(scope="module")
def infos(said, folder):
    spool = Spool(folder / "spool", max_bytes=2**30, max_captures=10**6)
    return [capture.read_info() for capture in spool.captures()]


def _num_steps(part):
    return {phase: part[phase] for phase in PHASES if phase in part}


def test_a_prompt_longer_than_a_step_is_prefilled_in_chunks(said):
    assert _num_steps(said["chunked"]) == {"prefill": 4}


def test_a_chunk_beside_a_request_that_generates_is_mixed(said):
    assert _num_steps(said["mixed"])["mixed"] >= 2


def test_a_step_that_checks_drafts_is_a_verify_as_often_as_vllm_counts_one(said):
    """One request at a time: vLLM counts drafts by request."""
    part = said["drafted"]

    assert part["spec_decode_num_drafts"] > 0
    assert _num_steps(part)["verify"] == part["spec_decode_num_drafts"]


def test_a_prompt_found_in_the_cache_but_for_its_last_token_is_no_prefill(said):
    assert _num_steps(said["cold"]) == {"prefill": said["block_size"] // CHUNK + 1}
    assert "prefill" not in _num_steps(said["prefix_hit"])
    assert sum(_num_steps(said["prefix_hit"]).values()) == 1


def test_a_preempted_request_starts_over_with_its_prompt(said):
    """What four prompts take in chunks, and more."""
    part = said["preempted"]

    assert part["num_preemptions"] > 0
    assert part["prefill"] + part["mixed"] > 4 * (said["block_size"] - 8) / CHUNK


def test_recording_is_switched_on_in_a_server_that_started_without(said, infos):
    assert (said["off"]["enabled"], said["off"]["off_reason"], said["off"]["num_samples"]) == (False, "disabled", 0)
    assert (said["on"]["enabled"], said["on"]["control_id"]) == (True, "on")
    assert infos
    assert all(info.op_cost_ns is not None for info in infos)


def test_the_batch_of_a_recorded_step_tells_drafts_proposed_and_accepted(infos):
    verified = [info.batch for info in infos if info.phase is Phase.VERIFY]

    assert verified
    assert any(batch.accepted_tokens > 0 for batch in verified)
    for batch in verified:
        assert 0 < batch.draft_tokens <= NUM_DRAFTS * batch.requests
        assert 0 <= batch.accepted_tokens <= batch.draft_tokens
        assert batch.output_tokens == batch.requests + batch.accepted_tokens
        assert batch.prompt_tokens == 0


def test_a_chunk_that_does_not_end_its_prompt_outputs_nothing(infos):
    chunks = [i.batch for i in infos if i.phase is Phase.PREFILL and i.batch.requests == 1]

    assert any(batch.output_tokens == 0 and batch.prompt_tokens == CHUNK for batch in chunks)
