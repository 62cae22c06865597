"""Captures of two real models are replayed and analyzed again: nearly all that may be replayed is."""

import json
import subprocess
import sys
from collections import defaultdict
from statistics import median

import pytest

from taxbreak_vllm.demo.models import write_tiny_moe
from taxbreak_vllm.model.breakdown import Breakdown, Tier

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(600)]

MIN_REPLAYED = 0.8


def taxbreak(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "taxbreak_vllm.cli", *map(str, arguments), "--json"],
        capture_output=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def spool(tiny_llama, tmp_path_factory, run_offline):
    """Captures of the tiny Llama and the tiny Qwen3-MoE."""
    folder = tmp_path_factory.mktemp("replay")
    models = (tiny_llama, write_tiny_moe(folder / "tiny-moe"))
    # one thread, as in the replay; and a pool of threads spins where others need the cores
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TAXBREAK_SAMPLE_EVERY": "4", "OMP_NUM_THREADS": "1"}
    run_offline("offline_two.py", folder, *models, **settings)
    return folder / "spool"


@pytest.fixture(scope="module")
def account(spool):
    """What `taxbreak replay` says of the whole spool."""
    return json.loads(taxbreak("replay", spool, "--baselines", spool.parent / "store.sqlite3", "--device", "cpu"))


@pytest.fixture(scope="module")
def breakdowns(spool, account):
    captures = sorted(step.parent for step in spool.glob("*/*/*/step.json"))
    tree = json.loads(taxbreak("analyze", *captures, "--baselines", spool.parent / "store.sqlite3"))
    return [Breakdown.from_builtins(one) for one in tree["breakdowns"]]


def test_every_signature_is_measured_or_denied_with_a_reason(account):
    wrong = [entry for entry in account["trouble"] if entry["outcome"] != "denied"]

    assert wrong == []
    assert account["left"] == 0
    assert sum(account["outcomes"].values()) == account["signatures"]
    assert all(entry["reason"] for entry in account["trouble"])


def test_four_fifths_of_what_may_be_replayed_rest_on_a_replay(breakdowns, record_property):
    weight = {"replayed": 0.0, "denied": 0.0, "all": 0.0}
    for breakdown in breakdowns:
        own = breakdown.total.taxes.orchestration_ns
        weight["replayed"] += own * breakdown.coverage.replay.get(Tier.REPLAYED, 0.0)
        weight["denied"] += breakdown.coverage.denied_ns
        weight["all"] += own

    share = weight["replayed"] / (weight["all"] - weight["denied"])

    record_property("replayed_share_outside_denied", round(share, 4))
    record_property("denied_share", round(weight["denied"] / weight["all"], 4))
    assert {breakdown.source.model_name.rpartition("/")[2] for breakdown in breakdowns} == {"tiny-llama", "tiny-moe"}
    assert share >= MIN_REPLAYED


def test_a_librarys_front_end_is_a_figure_now_and_the_host_is_whole(breakdowns):
    for breakdown in breakdowns:
        assert any("baselines replayed on" in note for note in breakdown.notes)
        for step in breakdown.steps:
            host = step.host
            assert step.taxes.delta_ct_ns is not None
            assert host.library_ns <= step.taxes.delta_ct_ns
            assert host.python_ns + host.dispatch_ns + host.library_ns + host.blocked_ns == step.window_ns
    assert sum(breakdown.total.taxes.delta_ct_ns for breakdown in breakdowns) > 0


def test_how_far_corrected_steps_are_from_plain_ones_is_told(breakdowns, record_property):
    """Methodology section 5: what a step still takes beyond its plain twin once the profiler's cost is off."""
    residuals = defaultdict(list)
    for breakdown in breakdowns:
        if breakdown.calibration.residual is not None:
            (step,) = breakdown.steps
            residuals[step.phase].append(breakdown.calibration.residual)

    medians = {str(phase): round(median(values), 4) for phase, values in residuals.items()}

    record_property("median_residual", json.dumps(medians))
    assert medians


def test_a_second_replay_has_nothing_left_to_do(spool, account):
    store = spool.parent / "store.sqlite3"

    again = json.loads(taxbreak("replay", spool, "--baselines", store, "--device", "cpu", "--budget-s", 60))

    assert again == account
