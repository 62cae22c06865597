"""The newcomer's walks in docs/architecture.md: each change is made to a copy of the package and has its effect."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
WALKS = {
    title: dict(re.findall(r"^```diff (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for title, text in re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}

READ_COMPONENT = """
from taxbreak_vllm import analyze
found = analyze("trace.json")
print(json.dumps({"total": found.total.taxes.delta_st_ns, "launches": found.total.launches}))
"""
READ_METRIC = """
from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.service.metrics.counters import counters
from taxbreak_vllm.service.results.counts import step_counts
from taxbreak_vllm.service.results.rows import Total
counts = step_counts(StepBreakdown(unique_kernels=5))
totals = [Total("m", "0", 0, "decode", count.counter, count.label, count.value) for count in counts]
families = {f.name: [s.value for s in f.samples] for f in counters(totals, {})}
print(json.dumps(families.get("taxbreak_unique_kernels")))
"""
READ_BACKEND = """
from taxbreak_vllm import analyze
found = analyze("trace.json")
print(json.dumps([found.source.device_type, found.total.launches, found.total.host.blocked_ns]))
"""


@pytest.fixture
def walk(tmp_path):
    """Make the changes of a walk to a copy, run a script on it, and return what it printed; how many files it took."""

    def walk(title, script):
        shutil.copytree(
            ROOT / "taxbreak_vllm", tmp_path / "taxbreak_vllm", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(ROOT / "docs", tmp_path / "docs")
        changes = next(found for name, found in WALKS.items() if name.startswith(title))
        for path, change in changes.items():
            lines = change.splitlines()
            before = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
            after = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
            text = (tmp_path / path).read_text()
            assert text.count(before) == 1, f"{path}: the lines that the walk names are not there once"
            (tmp_path / path).write_text(text.replace(before, after))
        done = subprocess.run(
            [sys.executable, "-c", "import json\n" + script],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), len(changes)

    return walk


def test_a_tax_component_takes_at_most_six_files(walk, reference, tmp_path):
    r = reference
    events = [r.op("aten::mm", 0, 90), r.call("cudaLaunchKernel", 50, 60, 1), r.call("cudaLaunchKernel", 70, 80, 2)]
    (tmp_path / "trace.json").write_text(r.to_json([*events, r.kernel("a", 65, 75, 1), r.kernel("b", 85, 95, 2)]))

    found, num_files = walk("A tax component", READ_COMPONENT)

    assert found == {"total": 14, "launches": 2}
    assert num_files <= 6


def test_a_metric_takes_at_most_three_files(walk):
    found, num_files = walk("A metric", READ_METRIC)

    assert found == [5]
    assert num_files <= 3


def test_a_backend_takes_at_most_two_files(walk, tmp_path):
    def event(name, category, ts, dur, **args):
        return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, "args": args}

    events = [event("aten::mm", "cpu_op", 0, 50), event("aclrtLaunchKernel", "npu_runtime", 10, 5, correlation=1)]
    events += [event("mm", "kernel", 20, 30, correlation=1, device=0, stream=1)]
    events += [event("aclrtSynchronizeStream", "npu_runtime", 60, 8)]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))

    found, num_files = walk("A backend", READ_BACKEND)

    assert found == ["npu", 1, 8000]
    assert num_files <= 2
