"""Schemathesis reads /openapi.json and asks a real sidecar, with a running server, for everything it describes."""

import gzip
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from taxbreak_vllm.traffic.log import Log
from taxbreak_vllm.traffic.rows import Setup, Updated

KEY = "secret"
TRACE = Path(__file__).parents[1] / "data" / "serving.json"


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed: pip install '.[test]'")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "how", [("--max-examples", "6"), pytest.param(("--max-examples", "20"), marks=pytest.mark.nightly)], ids=" ".join
)
def test_schemathesis_finds_nothing(filled, spool, start_sidecar, tmp_path, how):
    for capture in spool.captures():  # so that there is something to take apart
        capture.trace_path.write_bytes(gzip.compress(TRACE.read_bytes()))
    traffic = Setup(server_id="vllm-a", source="engine-0", vllm="0.0.0", config={})
    Log(spool.make_traffic_dir("vllm-a"), traffic, max_bytes=2**20).append([Updated(1)])
    url = start_sidecar(api_key=KEY, captures_per_minute=10_000)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", "all"]
    command += ["--header", f"Authorization: Bearer {KEY}", "--seed", "1", *how]

    done = subprocess.run(
        [*command, "--no-color"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )

    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
    assert re.search(r"Selected: (\d+)/\1\n\s+Tested: \1\n", done.stdout)
