"""The cost-latency front: points in, the same with those marked that no other point beats."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from taxbreak_vllm.model.sweep import SweepPoint

QUANTILE = "p90"


def with_front(points: Sequence[SweepPoint], metrics: Iterable[str]) -> tuple[SweepPoint, ...]:
    """Mark those for which no other has as much throughput of a replica, with latencies as low and one of it better.

    `metrics` are those of the SLO (`ttft`, `tpot`, `e2e`), each by its `QUANTILE`.
    """
    metrics = tuple(metrics)
    costs = [_costs(point, metrics) for point in points]
    return tuple(
        replace(point, is_on_front=cost is not None and not any(_beats(other, cost) for other in costs))
        for point, cost in zip(points, costs, strict=True)
    )


def latency_s(point: SweepPoint, metric: str) -> float | None:
    """Return the latency that a point is judged by."""
    spread = None if point.predicted is None else getattr(point.predicted, f"{metric}_s")
    return None if spread is None else spread[QUANTILE]


def _costs(point: SweepPoint, metrics: Sequence[str]) -> tuple[float, ...] | None:
    throughput = point.tokens_per_s_replica
    if throughput is None:
        return None
    found = [latency_s(point, metric) for metric in metrics]
    return (-throughput, *(value for value in found if value is not None))


def _beats(one: tuple[float, ...] | None, other: tuple[float, ...]) -> bool:
    return one is not None and one != other and all(a <= b for a, b in zip(one, other, strict=False))
