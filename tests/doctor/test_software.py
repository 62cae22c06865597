import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from taxbreak_vllm.doctor import software
from taxbreak_vllm.doctor.software import Torch
from taxbreak_vllm.model.errors import SettingsError

GENERAL = EntryPoint("taxbreak", "taxbreak_vllm.plugin:register", "vllm.general_plugins")
ENDPOINT = EntryPoint("taxbreak", "taxbreak_vllm.plugin:endpoint_plugin", "vllm.endpoint_plugins")
CPU_TORCH = Torch(version="2.13", cuda=None, hip=None, kineto=True, activities=["CPU"], cupti=None)


def cuda_torch(**changes):
    return Torch(**{"version": "2.13", "cuda": "13.0", "hip": None, "kineto": True, "activities": ["CPU", "CUDA"],
                    "cupti": 130101} | changes)  # fmt: skip


def test_a_wrong_setting_is_a_failure_in_its_own_words():
    def load():
        raise SettingsError("TAXBREAK_NONSENSE: no such setting")

    settings, found = software.settings(load)

    assert (found.grade, found.seen) == ("fail", "TAXBREAK_NONSENSE: no such setting")
    assert settings.spool_max_captures == 512


@pytest.mark.parametrize(
    ("version", "grade"),
    [
        (None, "ok"),
        ("0.26.0", "ok"),
        ("0.32.0+cpu", "ok"),
        ("0.33.9", "ok"),
        ("0.34.0", "warning"),
        ("0.25.1", "warning"),
        ("1.0", "warning"),
    ],
)
def test_a_vllm_outside_the_range_is_found(version, grade):
    assert software.vllm_version(version, ["<0.34,>=0.26"]).grade == grade


def test_the_range_is_that_of_the_extra():
    assert "of <0.34,>=0.26" in software.vllm_version("0.32.0").seen


@pytest.mark.parametrize(
    ("points", "environ", "grade", "seen"),
    [
        ([GENERAL, ENDPOINT], {}, "ok", "VLLM_PLUGINS is not set"),
        ([GENERAL, ENDPOINT], {"VLLM_PLUGINS": "other,taxbreak"}, "ok", "named in VLLM_PLUGINS=other,taxbreak"),
        ([GENERAL, ENDPOINT], {"VLLM_PLUGINS": "other"}, "warning", "VLLM_PLUGINS=other lets only those load"),
        ([], {}, "fail", "no entry point taxbreak in vllm.general_plugins, vllm.endpoint_plugins"),
        ([GENERAL], {}, "fail", "no entry point taxbreak in vllm.endpoint_plugins"),
        ([GENERAL, EntryPoint("taxbreak", "gone.plugin:f", ENDPOINT.group)], {}, "fail", "leads nowhere: gone.plugin"),
    ],
)
def test_how_vllm_sees_the_plugin_is_told(points, environ, grade, seen):
    found = software.plugin(points, environ=environ)

    assert (found.grade, seen in found.seen) == (grade, True), found


@pytest.mark.parametrize(
    ("torch", "grade", "seen"),
    [
        ("absent", "ok", "absent"),
        ("libcudart.so.13: cannot open", "fail", "cannot be imported: libcudart.so.13"),
        (CPU_TORCH, "ok", "Kineto records CPU"),
        (cuda_torch(), "ok", "Kineto records CPU, CUDA"),
        (cuda_torch(activities=["CPU"]), "fail", "but no device"),
        (cuda_torch(kineto=False), "fail", "without Kineto"),
    ],
)
def test_a_torch_that_cannot_record_is_found(torch, grade, seen):
    found = software.torch_kineto(torch)

    assert (found.grade, seen in found.seen) == (grade, True), found


def test_torch_is_asked_in_a_child(monkeypatch):
    pytest.importorskip("torch")

    found = software.probe_torch()

    assert isinstance(found, Torch)
    assert found.kineto
    assert "CPU" in found.activities


def test_a_torch_that_breaks_at_its_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    script = "from taxbreak_vllm.doctor.software import probe_torch; print(probe_torch())"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=60)

    assert done.stdout == "OSError: libcudart.so.13: cannot open\n", done.stderr


def test_a_profiler_injected_here_or_into_a_running_vllm_is_found(tmp_path):
    for pid, cmdline, environ in (
        (7, "python\0vllm serve", "CUDA_INJECTION64_PATH=/x\0"),
        (8, "nginx", "HSA_TOOLS_LIB=1"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_text(cmdline)
        (tmp_path / str(pid) / "environ").write_text(environ)
    nobody = tmp_path / "none"

    assert software.other_profilers({}, proc=nobody).grade == "ok"
    assert software.other_profilers({"CUDA_INJECTION64_PATH": ""}, proc=nobody).grade == "ok"
    assert (
        "NSYS_PROFILING_SESSION_ID is set here"
        in software.other_profilers({"NSYS_PROFILING_SESSION_ID": "1"}, proc=nobody).seen
    )
    found = software.other_profilers({}, proc=tmp_path)
    assert found.grade == "warning"
    assert found.seen.startswith("CUDA_INJECTION64_PATH is set in process 7: ")
