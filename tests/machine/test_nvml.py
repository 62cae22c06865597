"""The energy counter of a GPU: by NVML's own binding, over a library that stands for the driver's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml_stand_in.c")
GPU = "GPU-11111111-2222-3333-4444-555555555555"
# Asks again for each line that comes in, after what it says is written where the library reads it.
ASK = """
import json
import sys
from pathlib import Path
from taxbreak_vllm.machine.nvml import Nvml

nvml, said = Nvml(), Path(sys.argv[1])
for line in sys.stdin:
    uuid, _, text = line.strip().partition(" ")
    said.write_text(text)
    found = nvml.energy_mj(uuid)
    print(json.dumps(found if isinstance(found, int) else found.reason))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A folder with the stand-in; skips where it cannot be compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a stand-in for NVML with")
    folder = tmp_path_factory.mktemp("nvml")
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", folder / "libnvidia-ml.so.1", SOURCE]
    subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture
def ask(tmp_path):
    """Return what Nvml answers in a process with that library, for each question: a UUID, and what the library says."""
    pytest.importorskip("pynvml")

    def ask(*questions, library=None):
        said = tmp_path / "said"
        env = os.environ | {"NVML_STAND_IN": str(said), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        env["LD_LIBRARY_PATH"] = str(library or tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", ASK, said],
            input="".join(f"{question}\n" for question in questions),
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def test_the_counter_is_read_anew_each_time(ask, library):
    assert ask(f"{GPU} 5000 0 0", f"{GPU} 18446744073709551615 0 0", library=library) == [5000, 2**64 - 1]


def test_a_gpu_that_knows_no_mig_is_read(ask, library):
    assert ask(f"{GPU} 5000 -1 0", library=library) == [5000]


def test_under_mig_there_is_none(ask, library):
    (reason,) = ask(f"{GPU} 5000 1 0", library=library)
    assert "parted by MIG" in reason


def test_a_call_that_fails_gives_a_reason_and_the_next_one_is_tried(ask, library):
    lost, found = ask(f"{GPU} 5000 0 15", f"{GPU} 7000 0 0", library=library)
    assert lost == f"NVML tells no energy of {GPU}: GPU is lost"
    assert found == 7000


def test_a_gpu_that_is_not_here_gives_a_reason(ask, library):
    (reason,) = ask("GPU-0 5000 0 0", library=library)
    assert "GPU-0" in reason


def test_without_the_library_there_is_a_reason(ask):
    (reason,) = ask(f"{GPU} 5000 0 0")
    assert "NVML tells no energy" in reason


def test_without_the_binding_there_is_a_reason_and_what_to_install(tmp_path):
    (tmp_path / "pynvml.py").write_text("raise ImportError('planted')")
    code = f"from taxbreak_vllm.machine.nvml import Nvml; print(Nvml().energy_mj({GPU!r}).reason)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'taxbreak-vllm[nvml]'" in done.stdout
