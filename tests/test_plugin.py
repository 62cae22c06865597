import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from taxbreak_vllm import plugin
from taxbreak_vllm.serving import plugin as before
from taxbreak_vllm.serving.worker import server_id


def _python(code, **env):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("named", [None, "", "other", "other,taxbreaker"])
def test_without_being_named_the_plugin_touches_nothing(named, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    env = {} if named is None else {"VLLM_PLUGINS": named}
    code = "import sys; from taxbreak_vllm.plugin import register; register(); print('vllm' in sys.modules)"

    assert _python(code, **env) == "False"


@pytest.fixture(scope="module")
def in_vllm():
    """What a process in which vLLM is imported, and the plugin named, prints of it."""
    pytest.importorskip("vllm", exc_type=ImportError)
    code = """
from taxbreak_vllm.plugin import endpoint_plugin, register
from taxbreak_vllm.serving.worker import WorkerExtension
register()
register()
from vllm.v1.worker.worker_base import WorkerBase
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin
class Worker(WorkerBase):
    def __init__(self, **config): pass
    def sample_tokens(self, grammar_output): pass
    def execute_dummy_batch(self): pass
class Extended(Worker, WorkerExtension): pass
print([vars(kind(vllm_config=None)).keys() >= {'execute_model', 'taxbreak_status'} for kind in (Worker, Extended)])
print(object.__new__(Worker).taxbreak_status())
print(isinstance(endpoint_plugin(), EndpointPlugin))
"""
    return _python(code, VLLM_PLUGINS="other,taxbreak").splitlines()[-3:]


@pytest.mark.nightly
def test_named_it_hooks_every_worker_however_often_it_is_called(in_vllm):
    assert in_vllm[:2] == ["[True, True]", "{}"]


def test_a_vllm_it_does_not_know_starts_all_the_same():
    code = """
import sys
sys.modules['vllm'] = None
from taxbreak_vllm.plugin import register
register()
print('on')
"""
    assert _python(code, VLLM_PLUGINS="taxbreak") == "on"


class _Mounted:
    def __init__(self, error=None):
        self.error = error
        self.started = []

    def start(self, server_id):
        if self.error is not None:
            raise self.error
        self.started.append(server_id)

    def close(self):
        pass


class _Frontend:
    """Stands for what times requests, which never raises."""

    started = ()

    def __init__(self, app):
        type(self).started = []

    def start(self, engine_client, server_id, settings):
        self.started.append(server_id)


@pytest.fixture
def mounted(monkeypatch):
    """Puts a module in the place of service.mount, and what it mounts in the test's hands."""
    mounted = _Mounted()
    monkeypatch.setattr(plugin, "Frontend", _Frontend)
    monkeypatch.setitem(
        sys.modules, "taxbreak_vllm.service.mount", SimpleNamespace(mount=lambda app, settings: mounted)
    )
    return mounted


class _Engine:
    """Stands for vLLM's AsyncLLM."""

    vllm_config = SimpleNamespace(instance_id="170")

    def __init__(self, answer=()):
        self.answer = answer

    async def collective_rpc(self, method):
        assert method == "taxbreak_status"
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


ENGINE = _Engine()


def _start(endpoint, engine=ENGINE):
    asyncio.run(endpoint.init_state(engine, None, None))


def test_the_analyzer_is_started_for_the_id_that_the_workers_use(mounted):
    endpoint = plugin.endpoint_plugin()

    endpoint.attach_router("app")
    _start(endpoint)

    assert mounted.started == _Frontend.started == [server_id(ENGINE.vllm_config)]


def test_a_server_without_an_engine_has_nothing_to_analyze(mounted):
    endpoint = plugin.endpoint_plugin()

    endpoint.attach_router("app")
    _start(endpoint, engine=None)

    assert mounted.started == _Frontend.started == []


@pytest.mark.parametrize(("name", "value", "said"), [("PORT", "high", "PORT='high'"), ("API_KEY", "", "not empty")])
def test_a_wrong_setting_is_one_warning_and_no_routes(mounted, monkeypatch, caplog, name, value, said):
    monkeypatch.setenv(f"TAXBREAK_{name}", value)
    endpoint = plugin.endpoint_plugin()

    endpoint.attach_router("app")
    _start(endpoint)

    (record,) = caplog.records
    assert f"TAXBREAK_{name}" in record.getMessage()
    assert said in record.getMessage()
    assert mounted.started == []


def test_a_service_that_cannot_be_imported_or_started_does_not_stop_vllm(mounted, monkeypatch, caplog):
    endpoint = plugin.endpoint_plugin()
    endpoint.attach_router("app")
    mounted.error = RuntimeError("no process to be had")
    _start(endpoint)
    assert len(_Frontend.started) == 1  # requests are timed all the same

    monkeypatch.setitem(sys.modules, "taxbreak_vllm.service.mount", None)
    plugin.endpoint_plugin().attach_router("app")

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_of_several_api_servers_each_asks_the_workers_what_server_theirs_is(mounted):
    endpoint = plugin.endpoint_plugin()
    endpoint.attach_router("app")

    _start(endpoint, engine=_Engine([{}, {"server": {"server_id": "vllm-node-169"}}]))

    assert mounted.started == ["vllm-node-169"]


@pytest.mark.parametrize("answer", [[], [{}], [None], RuntimeError("no such method")])
def test_where_the_workers_do_not_tell_their_server_is_named_as_ours(mounted, answer):
    endpoint = plugin.endpoint_plugin()
    endpoint.attach_router("app")

    _start(endpoint, engine=_Engine(answer))

    assert mounted.started == [server_id(_Engine.vllm_config)]


def test_an_entry_point_of_before_finds_the_plugin():
    assert before.register is plugin.register
    assert before.endpoint_plugin is plugin.endpoint_plugin


@pytest.mark.nightly
def test_vllm_takes_it_for_an_endpoint_plugin(in_vllm):
    assert in_vllm[2] == "True"
