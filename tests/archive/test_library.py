"""The library of the archive is for whoever asks for an archive: vLLM's processes never load it, nor does a sidecar."""

import subprocess
import sys

import pytest

DOORS = ("taxbreak_vllm.plugin", "taxbreak_vllm.service.mount", "taxbreak_vllm.service.app", "taxbreak_vllm.cli.app")


@pytest.mark.parametrize("door", DOORS)
def test_nobody_loads_it_unasked(door):
    script = f"import sys, {door}; print(*({{'obstore', 'pyarrow', 'taxbreak_vllm.archive.store'}} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True)

    may = {"taxbreak_vllm.archive.store"} if door == "taxbreak_vllm.service.app" else set()
    assert set(loaded.stdout.split()) <= may
