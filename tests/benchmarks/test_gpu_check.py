"""The check for a GPU host, as far as it goes without one: what it needs, and its stages on the CPU backend."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the check needs torch")

import gpu_check  # noqa: E402 - after the check for torch
import gpu_lab  # noqa: E402
from gpu_models import SHAPES, Decoder, tiny  # noqa: E402

from taxbreak_vllm.model.breakdown import DeviceTime, HostTime, IdleTime, StepBreakdown  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NOT_NEEDED = (
    "pydantic",
    "pydantic_settings",
    "typer",
    "rich",
    "fastapi",
    "starlette",
    "httpx",
    "vllm",
    "prometheus_client",
)
IMPORTS = """
import sys
sys.path[:0] = {paths}
for name in {blocked}:
    sys.modules[name] = None
import gpu_book, gpu_check, gpu_lab, gpu_ops, gpu_stages, cublaslt
import taxbreak_vllm.replay.child, taxbreak_vllm.replay.floors, taxbreak_vllm.replay.measure
"""


def test_the_check_imports_nothing_but_torch_numpy_pandas_and_msgspec():
    code = IMPORTS.format(paths=[str(ROOT), str(ROOT / "benchmarks")], blocked=NOT_NEEDED)

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stderr


def test_a_wheel_stands_in_for_msgspec_where_it_is_not_installed(tmp_path, monkeypatch):
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    with zipfile.ZipFile(tmp_path / f"msgspec-0.20.0-{tag}-{tag}-linux_x86_64.whl", "w") as wheel:
        wheel.writestr("msgspec_of_a_wheel.py", "known = True")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/before")

    gpu_check.provide_msgspec(tmp_path, tmp_path / "site")

    import msgspec_of_a_wheel

    assert msgspec_of_a_wheel.known
    assert gpu_check.os.environ["PYTHONPATH"] == f"{tmp_path / 'site'}:/before"


def test_without_a_wheel_one_line_says_what_to_give(tmp_path):
    with pytest.raises(SystemExit, match=r"give --wheels a folder with msgspec-\*-cp3"):
        gpu_check.provide_msgspec(tmp_path, tmp_path / "site")


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_runs_a_prefill_and_a_decode_step(name):
    decoder = Decoder(tiny(SHAPES[name]), device="cpu")

    with torch.inference_mode():
        assert decoder.step(decoder.tokens(2, 5)).shape == (2,)
        assert decoder.step(decoder.tokens(2, 1), decoder.caches(2, 5)).shape == (2,)


def test_a_sum_that_does_not_come_out_is_named():
    step = StepBreakdown(
        name="decode", window_ns=100, host=HostTime(python_ns=60, dispatch_ns=39),
        device=DeviceTime(window_ns=100, active_ns=40, idle_ns=60, idle=IdleTime(edge_ns=60)),
    )  # fmt: skip
    breakdown = type("Breakdown", (), {"steps": (step,), "total": StepBreakdown()})

    assert gpu_lab.conservation(breakdown) == ["decode host: 99 != 100"]


@pytest.mark.nightly
def test_a_stage_that_needs_a_gpu_says_so_on_a_cpu(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--stage", "graphs", "--device", "cpu"]

    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stderr
    assert "graphs: skipped, CUDA graphs need a GPU" in done.stdout
    assert (tmp_path / "gpu_check.json").exists()
