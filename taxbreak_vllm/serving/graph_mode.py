"""The graph mode that vLLM ran a recorded step in: asked for before the step, read between its two calls."""

from typing import Any

from taxbreak_vllm.model.step import GraphMode
from taxbreak_vllm.serving.drops import logger


class GraphModeNote:
    """Has vLLM note the graph mode of one step, and restores its setting.

    vLLM reads the setting at every step (0.26 to 0.33, both model runners) and forgets the note when it samples. A
    vLLM that knows neither, or a fault of ours, costs the label its certainty and not the recording.
    """

    def __init__(self, worker: Any) -> None:  # noqa: ANN401 - a vLLM worker
        self._runner: Any = None
        self._config: Any = None
        self.mode: GraphMode | None = None
        try:
            self._runner = worker.model_runner
            config = worker.vllm_config.observability_config
            if config.cudagraph_metrics is False:
                config.cudagraph_metrics = True
                self._config = config
        except Exception as error:
            logger.debug("taxbreak: vLLM is not asked for the graph mode of a step: %r", error)

    def read(self) -> None:
        """Read the note into `mode`, once, and restore the setting."""
        runner, self._runner = self._runner, None
        config, self._config = self._config, None
        try:
            if config is not None:
                config.cudagraph_metrics = False
            state = getattr(runner, "execute_model_state", None)
            mode = getattr(getattr(state, "cudagraph_stats", None), "runtime_mode", None)
            if mode is not None:
                self.mode = GraphMode(str(mode))
        except Exception as error:
            logger.debug("taxbreak: the graph mode of a step is not read: %r", error)
