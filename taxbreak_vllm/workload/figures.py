"""Throughput and latencies: when requests came, had their first and last token and were answered in, figures out."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from taxbreak_vllm.model.workload import Latencies
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.traffic.rows import Int64
from taxbreak_vllm.workload.simulate import COLUMNS, Served

Columns = Mapping[str, npt.NDArray[np.float64]]


def measured_rows(rows: Int64) -> Columns:
    """Return what an API server measured, from its requests (requests, columns of `stages.rows.Column`).

    A token counts once the API server has it, of an answer that is not streamed once the engine has it.
    """
    is_streamed = rows[:, Column.IS_STREAMED] > 0  # else the API server hands on the whole answer at once
    found = {
        "at": rows[:, Column.ARRIVED],
        "first": np.where(is_streamed, rows[:, Column.FIRST_PUT], rows[:, Column.FIRST_TOKEN]),
        "last": np.where(is_streamed, rows[:, Column.LAST_PUT], rows[:, Column.LAST_TOKEN]),
        "sent": rows[:, Column.END],
        "tokens": rows[:, Column.NUM_OUTPUT_TOKENS],
    }
    return {name: values.astype(np.float64) for name, values in found.items()}


def simulated_rows(runs: Sequence[Served], *, came_ns: Int64 | None = None) -> Columns:
    """Return the same of simulated ones, with `came_ns` (requests,) of those that came at these instants."""
    table = np.concatenate([run.table for run in runs])
    return dict(zip(COLUMNS, (table if came_ns is None else table[np.isin(table[:, 0], came_ns)]).T, strict=True))


def latencies(found: Columns, *, slo: Mapping[str, float] | None = None) -> Latencies:
    """Return the figures; `slo` bounds `ttft`, `tpot` and `e2e`, in seconds."""
    if not len(found["at"]):
        return Latencies(num_requests=0, tokens_per_s=0.0)
    wall_s = (found["sent"].max() - found["at"].min()) / 1e9
    more = found["tokens"] > 1
    tpot = np.where(more, (found["last"] - found["first"]) / np.maximum(found["tokens"] - 1, 1), 0.0) / 1e9
    times = {"ttft": (found["first"] - found["at"]) / 1e9, "e2e": (found["sent"] - found["at"]) / 1e9, "tpot": tpot}
    kept = [times[name] <= most for name, most in (slo or {}).items()]
    return Latencies(
        num_requests=len(found["at"]),
        tokens_per_s=float(found["tokens"].sum() / max(wall_s, 1e-9)),
        ttft_s=_spread(times["ttft"]),
        tpot_s=_spread(tpot[more]) if more.any() else None,
        e2e_s=_spread(times["e2e"]),
        slo_ratio=float(np.logical_and.reduce(kept).mean()) if kept else None,
    )


def figures(found: Latencies) -> dict[str, float]:
    """Return all figures by name, as `ttft_mean`."""
    flat = {"tokens_per_s": found.tokens_per_s}
    for name, spread in (("ttft", found.ttft_s), ("tpot", found.tpot_s), ("e2e", found.e2e_s)):
        flat |= {f"{name}_{what}": value for what, value in (spread or {}).items()}
    return flat


def errors_of(told: Latencies, measured: Latencies) -> dict[str, float]:
    """Return by how much each predicted figure is off the measured one, as a share of it."""
    known = figures(measured)
    return {name: value / known[name] - 1 for name, value in figures(told).items() if known.get(name)}


def _spread(values: npt.NDArray[np.float64]) -> dict[str, float]:
    p50, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99]).tolist()
    return {"mean": float(values.mean()), "p50": p50, "p90": p90, "p99": p99}
