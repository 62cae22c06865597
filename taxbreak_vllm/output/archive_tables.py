"""The tables of an archive as Parquet, `tables/v1/NAME/…`: steps, iterations and requests, a row each.

In: breakdowns with their `step.json`, windows of engines' loops, waterfalls. Out: the bytes of a file. Its columns are
those of `COLUMNS`, integer ns where it is a time and NULL where it is not known; a version may add some, and any other
change is another version of the layout. Needs pyarrow (the extra `archive`).
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from taxbreak_vllm.iterations.report import report
from taxbreak_vllm.iterations.window import Window
from taxbreak_vllm.model.breakdown import Breakdown, StepBreakdown
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.frontend import DELIVERY, Stage, Waterfall
from taxbreak_vllm.model.host import HostFacts
from taxbreak_vllm.model.step import Server, StepInfo
from taxbreak_vllm.output.columns import Column, Kind, figures
from taxbreak_vllm.output.parquet import arrow_table

SCHEMA = "taxbreak.archive/1"

Row = Mapping[str, Any]


class Table(StrEnum):
    """The tables, by their name in the archive."""

    BREAKDOWNS = "breakdowns"
    ITERATIONS = "iterations"
    WATERFALLS = "waterfalls"


_SERVER: dict[str, Kind] = {
    **dict.fromkeys(("server_id", "host", "model_name", "vllm_version", "torch", "cuda", "settings_hash"), "string"),
    **dict.fromkeys(("device_type", "device_name", "device_uuid", "dtype"), "string"),
}
_STEP = {name: (kind, read) for name, kind, read in figures(StepBreakdown) if name not in ("name", "number")}
_HOST = {name: (kind, read) for name, kind, read in figures(HostFacts)}
_PARTS = (*EnginePart, *Between)
_FIGURES: tuple[tuple[str, Kind], ...] = (("median_ns", "Int64"), ("share", "Float64"))

COLUMNS: Mapping[Table, Mapping[str, Kind]] = {
    Table.BREAKDOWNS: {
        "step_id": "string",
        "started_unix_ns": "Int64",
        **_SERVER,
        "engine": "string",
        "rank": "Int64",
        "capture_id": "string",
        "plain_window_ns": "Int64",
        "num_plain": "Int64",
        "overhead_ns": "Int64",
        **{name: kind for name, (kind, _) in _HOST.items()},
        "attribution": "string",
        "calibration": "string",
        "dilation": "Float64",
        "residual": "Float64",
        **{name: kind for name, (kind, _) in _STEP.items()},
        "notes": "string",
    },
    Table.ITERATIONS: {
        "ended_unix_ns": "Int64",
        **_SERVER,
        "engine": "string",
        "works_ahead": "boolean",
        "phase": "string",
        "iterations": "Int64",
        "num_unjoined": "Int64",
        "thread_cpu_ratio": "Float64",
        "unexplained_ratio": "Float64",
        "total_median_ns": "Int64",
        "total_p90_ns": "Int64",
        "worker_median_ns": "Int64",
        "worker_share": "Float64",
        **{f"{part}_{figure}": kind for part in _PARTS for figure, kind in _FIGURES},
    },
    Table.WATERFALLS: {
        "started_unix_ns": "Int64",
        **_SERVER,
        "api": "string",
        "engine": "string",
        "number": "Int64",
        "total_ns": "Int64",
        "ttft_ns": "Int64",
        "num_prompt_tokens": "Int64",
        "num_output_tokens": "Int64",
        "is_streamed": "boolean",
        **{f"{stage}_ns": "Int64" for stage in Stage},
        **{f"first_token.{stage}_ns": "Int64" for stage in DELIVERY},
    },
}


def write_table(table: Table, rows: Sequence[Row]) -> bytes:
    """Return the Parquet file of these rows, the same bytes for the same rows; raises TaxbreakError without pyarrow."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise TaxbreakError("the tables of an archive need pyarrow: pip install 'taxbreak-vllm[archive]'") from None
    columns = {name: Column.of(kind, [row.get(name) for row in rows]) for name, kind in COLUMNS[table].items()}
    buffer = io.BytesIO()
    pq.write_table(arrow_table(columns, schema=SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def breakdown_row(info: StepInfo, breakdown: Breakdown) -> Row:
    """Return the row of a recorded step; `breakdown` is of it alone."""
    (step,) = breakdown.steps
    calibration = breakdown.calibration
    return {
        "step_id": info.step_id,
        "started_unix_ns": info.started_unix_ns,
        **server_row(info.server),
        "engine": info.server.engine,
        "rank": info.server.rank,
        "capture_id": info.capture_id,
        "plain_window_ns": info.plain_window_ns,
        "num_plain": info.num_plain,
        "overhead_ns": info.overhead_ns,
        **{name: read(info.host) for name, (_, read) in _HOST.items()},
        "attribution": breakdown.attribution,
        "calibration": calibration.state,
        "dilation": calibration.dilation,
        "residual": calibration.residual,
        **{name: read(step) for name, (_, read) in _STEP.items()},
        "notes": "; ".join((*breakdown.notes, *step.notes)),
    }


def iteration_rows(window: Window, server: Server, *, ended_unix_ns: int) -> Iterable[Row]:
    """Yield a row for each phase of a window; raises SpoolError for one that cannot be read."""
    found = report([window], path=Path())
    for phase, told in found.phases.items():
        yield {
            "ended_unix_ns": ended_unix_ns,
            **server_row(server),
            "engine": window.engine,
            "works_ahead": found.works_ahead,
            "phase": phase,
            "iterations": told.num,
            "num_unjoined": found.num_unjoined,
            "thread_cpu_ratio": found.thread_cpu_ratio,
            "unexplained_ratio": told.unexplained_ratio,
            "total_median_ns": told.total.median_ns,
            "total_p90_ns": told.total.p90_ns,
            "worker_median_ns": told.worker.median_ns,
            "worker_share": told.worker.share,
            **{f"{part}_median_ns": durations.median_ns for part, durations in told.parts.items()},
            **{f"{part}_share": durations.share for part, durations in told.parts.items()},
        }


def waterfall_row(waterfall: Waterfall, server: Server, *, api: str) -> Row:
    """Return the row of a request."""
    return {
        "started_unix_ns": waterfall.started_unix_ns,
        **server_row(server),
        "api": api,
        "engine": waterfall.engine,
        "number": waterfall.number,
        "total_ns": waterfall.total_ns,
        "ttft_ns": waterfall.ttft_ns,
        "num_prompt_tokens": waterfall.num_prompt_tokens,
        "num_output_tokens": waterfall.num_output_tokens,
        "is_streamed": waterfall.is_streamed,
        **{f"{stage}_ns": spent_ns for stage, spent_ns in waterfall.stages_ns.items()},
        **{f"first_token.{stage}_ns": spent_ns for stage, spent_ns in waterfall.first_token_ns.items()},
    }


def server_row(server: Server) -> Row:
    """Return the columns that say whose a row is."""
    return {name: getattr(server, "vllm" if name == "vllm_version" else name) or None for name in _SERVER}
