"""`taxbreak doctor` as a process, beside a real sidecar and with faults planted into its environment."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest

from taxbreak_vllm.model.version import package_version


@pytest.fixture
def doctor(tmp_path):
    def doctor(*words, **environment):
        command = [sys.executable, "-m", "taxbreak_vllm.cli", "doctor", *map(str, words)]
        unbounded = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        environment = unbounded | {"TAXBREAK_SPOOL": str(tmp_path / "spool")} | environment
        return subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment)

    return doctor


def test_a_host_is_examined_beside_its_sidecar_and_told_as_json(doctor, start_sidecar, filled):
    url = start_sidecar()

    done = doctor("--url", url, "--json")

    told = json.loads(done.stdout)
    findings = {finding["check"]: finding for finding in told["findings"]}
    assert told["schema"] == "taxbreak.doctor/1"
    assert findings["sidecar"]["seen"] == f"{url}, version {package_version()}"
    assert findings["workers"]["seen"].startswith("1 running, ")
    assert len(findings) > 15
    assert all((finding["grade"] == "ok") == (not finding["remedy"]) for finding in told["findings"])
    assert done.returncode == any(finding["grade"] == "fail" for finding in told["findings"])


def test_what_is_planted_is_found_with_its_remedy_and_exit_1(doctor):
    done = doctor(
        "--url", "http://127.0.0.1:1", TAXBREAK_NONSENSE="1", CUDA_INJECTION64_PATH="/x", VLLM_PLUGINS="other"
    )

    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert any(line.startswith("fail    settings: TAXBREAK_NONSENSE: no such setting") for line in lines)
    assert any(line.startswith("warning other profilers: CUDA_INJECTION64_PATH is set here") for line in lines)
    assert any(line.startswith("warning plugin: ") or line.startswith("fail    plugin: ") for line in lines)
    assert any(line.startswith("fail    sidecar: http://127.0.0.1:1: cannot be reached") for line in lines)
    remedies = [after for line, after in pairwise(lines) if line.startswith(("fail", "warning"))]
    assert all(line.startswith("        → ") for line in remedies)


def test_bad_usage_is_exit_2(doctor):
    assert doctor("--nonsense").returncode == 2
