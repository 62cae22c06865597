"""From vLLM's app and its engine's client to a watch over their requests.

The middleware is added when vLLM builds its app. Once the engine is there, and before the first request, it is moved
outside all other middleware, and the hooks are put on.
"""

from typing import Any

from taxbreak_vllm.model.frontend import FrontendState
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.frontend.in_flight import InFlight
from taxbreak_vllm.serving.frontend.middleware import RequestMiddleware
from taxbreak_vllm.serving.frontend.watch import FrontendWatch
from taxbreak_vllm.serving.worker import model_name
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool


class Frontend:
    """The requests of one app; neither method raises."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401 - a FastAPI app
        """Add the middleware, which does nothing yet; twice on an app is once."""
        self._app = app
        self._in_flight = InFlight()
        try:
            ours = [middleware for middleware in app.user_middleware if middleware.cls is RequestMiddleware]
            if ours:
                self._in_flight = ours[0].kwargs["in_flight"]
            else:
                app.add_middleware(RequestMiddleware, in_flight=self._in_flight)
        except Exception as error:
            self._in_flight.fail(error)

    def start(self, engine_client: Any, server_id: str, settings: Settings) -> FrontendWatch | None:  # noqa: ANN401
        """Time the requests to this engine's client (an `AsyncLLM`) from now on; called on the event loop's thread."""
        if self._in_flight.is_on or self._in_flight.fault:
            return None
        try:
            app = self._app
            if app.middleware_stack is None:
                app.user_middleware.sort(key=lambda middleware: middleware.cls is not RequestMiddleware)
            core = engine_client.engine_core
            state = FrontendState(
                server_id=server_id,
                api=str(getattr(core, "client_index", 0)),
                model_name=model_name(engine_client.vllm_config),
            )
            spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
            watch = FrontendWatch(self._in_flight, spool, state, settings)
            watch.attach(engine_client)
            watch.start()
        except Exception as error:
            self._in_flight.fail(error)
            return None
        logger.info("taxbreak: timing requests")
        return watch
