"""vLLM's entry points: hooks without the extension slot, and our routes on vLLM's own API server.

Both do nothing unless `taxbreak` is named in `VLLM_PLUGINS`, but that an engine asks at the start of its loop whether
its server names our extension. Neither raises: vLLM lets what a plugin raises end the server.
"""

import asyncio
import atexit
import os
from argparse import Namespace
from typing import Any, Protocol

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.engine.install import hook_engines
from taxbreak_vllm.serving.frontend.install import Frontend
from taxbreak_vllm.serving.worker import WorkerExtension, server_id
from taxbreak_vllm.settings import Settings, load_settings

NAME = "taxbreak"
_ASK_S = 10.0


class Mounted(Protocol):
    """Our routes on an app, and the analyzer behind them."""

    def start(self, server_id: str) -> None: ...
    def close(self) -> None: ...


def register() -> None:
    """Hook every worker built in this process from now on; vLLM calls this once in each of its processes.

    Naming the plugin is consent to this one change to a class of vLLM: `WorkerBase.__new__`, which vLLM leaves to
    `object`. With the extension named too, a worker is hooked once all the same.
    """
    try:
        hook_engines()
        os.register_at_fork(after_in_child=hook_engines)  # it has our plugin loaded already, and its engine only now
        if NAME not in os.environ.get("VLLM_PLUGINS", "").split(","):
            return
        from vllm.v1.worker.worker_base import WorkerBase

        # a worker without it would fail the call that `init_state` makes, and vLLM's ranks with it
        WorkerBase.taxbreak_status = _no_status
        if "__new__" not in vars(WorkerBase):
            WorkerBase.__new__ = WorkerExtension.__new__
        elif WorkerBase.__new__ is not WorkerExtension.__new__:
            logger.warning("taxbreak: this vLLM builds its workers in a way of its own; name the worker extension")
    except Exception as error:
        logger.warning("taxbreak: workers are not hooked: %r", error)


def endpoint_plugin() -> "EndpointPlugin":
    """Make the endpoint plugin; vLLM calls this in each API server, only where `VLLM_PLUGINS` names us."""
    return EndpointPlugin()


class EndpointPlugin:
    """Mounts `/v1/taxbreak` on vLLM's API server, starts the analyzer behind it and times the server's requests.

    (vllm/plugins/endpoint_plugins)
    """

    name = NAME
    required_tasks = None

    def __init__(self) -> None:
        self._mounted: Mounted | None = None
        self._frontend: Frontend | None = None
        self._settings: Settings | None = None

    def attach_router(self, app: Any) -> None:  # noqa: ANN401 - a FastAPI app
        """Mount the routes and add the middleware."""
        try:
            self._settings = load_settings()
        except SettingsError as error:
            logger.warning("taxbreak: %s; /v1/taxbreak is not served", error)
            return
        self._frontend = Frontend(app)
        try:
            from taxbreak_vllm.service.mount import mount

            self._mounted = mount(app, self._settings)
        except Exception as error:
            logger.warning("taxbreak: /v1/taxbreak is not served: %r", error, exc_info=error)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:  # noqa: ANN401 - vLLM's own
        """Start the analyzer for this server; vLLM's render server, which has no engine, has nothing to analyze."""
        if self._frontend is None or self._settings is None or engine_client is None:
            return
        try:
            server = await _ask_server_id(engine_client)
            self._frontend.start(engine_client, server, self._settings)
            if self._mounted is not None:
                self._mounted.start(server)
                atexit.register(self._mounted.close)
        except Exception as error:
            logger.warning("taxbreak: the analyzer did not start: %r", error, exc_info=error)


async def _ask_server_id(engine_client: Any) -> str:  # noqa: ANN401 - vLLM's AsyncLLM
    """Ask the workers what server they belong to: of several API servers each has an instance id of its own."""
    try:
        # no time limit within vLLM: workers that answer a call given up there are one answer behind ever after
        for status in await asyncio.wait_for(engine_client.collective_rpc("taxbreak_status"), _ASK_S):
            if status:
                return str(status["server"]["server_id"])
    except Exception as error:
        logger.warning("taxbreak: the workers do not tell their server's name: %r", error)
    return server_id(engine_client.vllm_config)


def _no_status(_worker: object) -> dict[str, Any]:
    return {}
