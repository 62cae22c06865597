"""From vLLM's engine class to a watch over its loop: hooked when the loop begins, where its server asked for us.

`run_busy_loop` is looked up on the class when an engine starts to work (vllm/v1/engine/core.py), and that of
data-parallel engines is one of its own; it is the one class method that is changed, and passes straight through for a
server that does not name us.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.engine.watch import LoopWatch
from taxbreak_vllm.serving.worker import engine_of, model_name
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool

_LOOP = "run_busy_loop"
_MARK = "taxbreak_original"


def hook_engines() -> None:
    """Have the loop of every engine of this process timed from its start on; twice is once.

    Where no engine is loaded there is none, and none is loaded for us.
    """
    core = sys.modules.get("vllm.v1.engine.core")
    for name in ("EngineCoreProc", "DPEngineCoreProc"):
        kind = getattr(core, name, None)
        loop = vars(kind).get(_LOOP) if kind is not None else None
        if loop is not None and not hasattr(loop, _MARK):
            setattr(kind, _LOOP, _watching(loop))


def _watching(loop: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run_busy_loop(engine: Any) -> Any:  # noqa: ANN401 - an EngineCoreProc
        watch(engine)
        return loop(engine)

    setattr(run_busy_loop, _MARK, loop)
    return run_busy_loop


def watch(engine: Any) -> LoopWatch | None:  # noqa: ANN401 - an EngineCoreProc
    """Start a watch over an engine whose server names us; None for any other, and where that fails."""
    try:
        config = engine.vllm_config
        if not is_wanted(config):
            return None
        settings = load_settings()
        spool = Spool(settings.spool, max_bytes=settings.spool_max_bytes, max_captures=settings.spool_max_captures)
        state = EngineState(
            engine=str(engine_of(config)),
            model_name=model_name(config),
            works_ahead=bool(getattr(config.scheduler_config, "async_scheduling", False)),
        )
        found = LoopWatch(engine, spool, state, settings)
        found.start()
    except SettingsError as error:
        logger.debug("taxbreak: %s", error)  # its workers say so aloud
        return None
    except Exception as error:
        logger.warning("taxbreak: an engine's loop is not timed: %r", error)
        return None
    logger.info("taxbreak: timing the engine's loop")
    return found


def is_wanted(config: Any) -> bool:  # noqa: ANN401 - a VllmConfig
    """Tell a server that names our extension or our plugin."""
    extension = str(getattr(config.parallel_config, "worker_extension_cls", ""))
    return extension.startswith("taxbreak_vllm.") or "taxbreak" in os.environ.get("VLLM_PLUGINS", "").split(",")
