"""An engine is watched where its server names us; any other passes straight through."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from taxbreak_vllm.serving.engine import install


def engine(extension="", **members):
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(worker_extension_cls=extension, data_parallel_index=3, data_parallel_rank=0),
        model_config=SimpleNamespace(served_model_name=["served", "alias"], model="m"),
        scheduler_config=SimpleNamespace(async_scheduling=True),
    )
    return SimpleNamespace(vllm_config=config, **members)


@pytest.fixture
def core(monkeypatch):
    class EngineCoreProc:
        def run_busy_loop(self):
            return "ran"

    core = SimpleNamespace(EngineCoreProc=EngineCoreProc)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.core", core)
    return core


@pytest.mark.parametrize(
    ("extension", "plugins", "is_wanted"),
    [
        ("taxbreak_vllm.WorkerExtension", None, True),
        ("", "other,taxbreak", True),
        ("", None, False),
        ("theirs.Extension", "other", False),
    ],
)
def test_a_server_names_us_by_the_extension_or_the_plugin(monkeypatch, extension, plugins, is_wanted):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)

    assert install.is_wanted(engine(extension).vllm_config) is is_wanted


def test_the_loop_runs_where_nobody_names_us(core, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    install.hook_engines()

    assert core.EngineCoreProc.run_busy_loop(engine()) == "ran"


def test_the_loop_runs_where_the_engine_is_none_we_know(core, caplog):
    install.hook_engines()

    assert core.EngineCoreProc.run_busy_loop(engine("taxbreak_vllm.WorkerExtension")) == "ran"
    assert "an engine's loop is not timed" in caplog.text


def test_a_wrong_setting_is_left_for_the_workers_to_tell(core, monkeypatch, caplog):
    monkeypatch.setenv("TAXBREAK_SAMPLE_EVRY", "1")

    assert install.watch(engine("taxbreak_vllm.WorkerExtension")) is None
    assert not caplog.records


def test_hooking_twice_is_once(core):
    install.hook_engines()
    loop = core.EngineCoreProc.run_busy_loop
    install.hook_engines()

    assert core.EngineCoreProc.run_busy_loop is loop


def test_an_engine_that_is_loaded_only_after_a_fork_is_hooked_in_the_child(monkeypatch):
    """As in a process that vLLM forks from one that has the plugin already."""
    code = """
import os, sys, types
from taxbreak_vllm.plugin import register
register()
core = types.SimpleNamespace(EngineCoreProc=type("EngineCoreProc", (), {"run_busy_loop": lambda self: None}))
before = core.EngineCoreProc.run_busy_loop
sys.modules["vllm.v1.engine.core"] = core
if (child := os.fork()) == 0:
    os._exit(core.EngineCoreProc.run_busy_loop is before)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_where_no_engine_is_loaded_nothing_is(monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm.v1.engine.core", raising=False)
    before = set(sys.modules)

    install.hook_engines()

    assert set(sys.modules) == before
