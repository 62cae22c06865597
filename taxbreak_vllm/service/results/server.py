"""The balance of whole servers: the steps of a window beside the engines that run.

In: a window of steps, the states in the spool. Out: `HdbiServer`; `taxes.server` is the equation.
"""

from collections.abc import Iterable

from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.model.server import HdbiServer
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.service.results.window import Window
from taxbreak_vllm.taxes.server import server_hdbi


def window_hdbi(
    window: Window, engines: Iterable[EngineState], *, server_id: str | None = None, phase: Phase | None = None
) -> HdbiServer:
    """Return the balance of the steps of a window and the engines of their model, or of one server of it.

    Steps of several models have none: none of them is that of an engine.
    """
    model_name = window.breakdown.source.model_name
    own = [s for s in engines if s.model_name == model_name and server_id in (None, s.server_id)]
    return server_hdbi(window.balances, own, only=phase)
