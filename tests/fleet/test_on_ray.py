"""On a Ray whose worker is killed in the middle the objects are those of this machine's processes, byte for byte."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from rig.fleet import Fleet, RayKiller, fill

from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.fleet.analyze import analyze, plan
from taxbreak_vllm.fleet.batch import analyze_batch
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.version import package_version

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray"),  # not imported here: every run collects this file
]


def archive(folder):
    folder.mkdir()
    store = Store(f"file://{folder}")
    fill(store, Fleet(num_hosts=8, num_captures=16, days=1).captures())
    return store


def objects(folder):
    root = folder / "analyses"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_killed_worker_costs_nothing(tmp_path, monkeypatch):
    here, there = archive(tmp_path / "here"), archive(tmp_path / "there")
    for batch in plan(here, package_version()).batches:
        analyze_batch(batch)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.delenv(RayKiller._VARIABLE, raising=False)
    killer = RayKiller(lambda count: count.num_analyzed > 0)

    count, broken = analyze(plan(there, package_version()), jobs=1, ray="local", progress=killer)

    assert len(killer.killed) == 1
    assert (count.num_analyzed, broken) == (128, [])
    assert objects(tmp_path / "there") == objects(tmp_path / "here")


def test_no_cluster_at_an_address_is_one_line(tmp_path):
    store = archive(tmp_path / "archive")

    with pytest.raises(SettingsError, match="--ray"):
        analyze(plan(store, package_version()), jobs=1, ray="nowhere:1")
