"""The labels of our series: of a model, an engine, a rank, and of its steps of one phase; and ns as seconds."""

from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.results.rows import Series

MODEL_LABELS = ("model_name",)
ENGINE_LABELS = (*MODEL_LABELS, "engine")
SERVER_LABELS = (*ENGINE_LABELS, "rank")
STEP_LABELS = (*SERVER_LABELS, "phase")
NS_PER_S = 1e9


def series_labels(series: Series) -> tuple[str, ...]:
    """Return the values of `STEP_LABELS`."""
    return (series.model_name, series.engine, str(series.rank), series.phase)


def server_labels(state: WorkerState) -> tuple[str, ...]:
    """Return the values of `SERVER_LABELS`."""
    return (state.server.model_name, state.server.engine, str(state.server.rank))
