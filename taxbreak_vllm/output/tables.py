"""Dispatches and steps as pandas data frames.

In: recordings, breakdowns. Out: one row per dispatch with all its spans, one row per step with all its
figures; integer ns, missing values as NA.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from taxbreak_vllm.model.breakdown import Attribution, Breakdown
from taxbreak_vllm.output.columns import Column, Columns, dispatch_columns, step_columns
from taxbreak_vllm.taxes.recording import Recording, opened
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.kernels import KernelRules

if TYPE_CHECKING:
    from taxbreak_vllm.baselines.store import Baselines


def dispatches(
    source: Recording | str | Path,
    *,
    floor_ns: int | None = None,
    rules: KernelRules | None = None,
    attribution: Attribution = Attribution.EXCLUSIVE,
    baselines: "Baselines | None" = None,
) -> pd.DataFrame:
    """Return one row per dispatch of a trace or capture, in launch order, every time and span in ns.

    The keywords are those of `analyze`; a recording that is open already has its own terms.

    step, phase, thread ("pid:tid") · op (leaf), root_op, launch (the call) · kernel (its first; the copy or fill where
    there is none), family, i_lib, device, stream · t_root, t_launch, t_return, t_dev, t_end on the trace's own clock ·
    t_py_ns, t_dispatch_ns, t_launch_ns (t_dev - t_launch, negative where a trace says so) · delta_ft_ns, delta_ct_ns,
    delta_kt_ns · num_kernels, num_activities, is_graph, tier. Definitions: methodology sections 2 and 3. NA is what
    does not exist (no op around a launch, no step) or could not be measured.

    Raises TraceFormatError for a file that is missing, damaged or not a trace, SpoolError for a capture without its
    StepInfo.
    """
    terms = Terms(rules=rules or KernelRules.load(), floor_ns=floor_ns, attribution=attribution, baselines=baselines)
    with opened(source, terms) as recording:
        return _frame(dispatch_columns(recording.measured, recording.windows))


def step_table(breakdown: Breakdown) -> pd.DataFrame:
    """Return one row per step with all its figures, in ns; nested names are joined by dots, `name` is `step`."""
    return _frame(step_columns(breakdown))


def _frame(columns: Columns) -> pd.DataFrame:
    return pd.DataFrame({name: _series(column) for name, column in columns.items()})


def _series(column: Column) -> pd.Series:
    if column.kind == "string":
        # The spare last entry is NA, and -1 picks it.
        texts = np.array([*column.texts, None], dtype=object)
        index = column.values if column.known is None else np.where(column.known, column.values, -1)
        return pd.Series(texts[index], dtype="string")
    if column.known is None:
        return pd.Series(column.values)
    return pd.Series(column.values, dtype=column.kind).where(column.known)
