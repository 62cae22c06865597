"""Which op's work each dispatch is part of: the innermost op around its launch whose work a rule tells.

In: measured columns of a trace read with its calls, and its steps. Out: `Charges`. A rule is asked once for each
distinct call, kernel, step and op around it, as far as it looks at them; all else is columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taxbreak_vllm.limit.annotation import tokens_of
from taxbreak_vllm.limit.ops.arguments import Around
from taxbreak_vllm.limit.ops.conv import convolution_of
from taxbreak_vllm.limit.ops.table import rule_of, work_of
from taxbreak_vllm.model.limit import StepTokens, Work
from taxbreak_vllm.model.shape import ModelShape
from taxbreak_vllm.taxes.measured import Measured, group_by_time
from taxbreak_vllm.trace.calls import Call, Calls
from taxbreak_vllm.trace.dispatches import Bool, innermost, next_outer
from taxbreak_vllm.trace.events import EventKind
from taxbreak_vllm.trace.intervals import Index, Int64
from taxbreak_vllm.trace.steps import StepWindow

_WITHIN = "its products are those of ops within it, which are counted"
_NO_OP = "launched outside of any op"


@dataclass(frozen=True, slots=True)
class Charges:
    """For each dispatch the op it is charged to (into Host.op_row), that op's call and work, else the reason: places in
    `works` and `reasons`, -1 for none. Dispatches of one op share one work.
    """

    op: Index
    call: Index
    work: Index
    reason: Index
    works: tuple[Work, ...]
    reasons: tuple[str, ...]


def charge(
    measured: Measured,
    chosen: Bool,
    dispatch_ns: Int64,
    windows: Sequence[StepWindow],
    tokens: Sequence[StepTokens | None] | None = None,
    model: ModelShape | None = None,
) -> Charges:
    """Charge the chosen dispatches, `dispatch_ns` being the device time of each.

    `tokens` are those of each of the windows, where the caller knows them better than the annotations of the steps;
    `model` is asked where a call does not hold what it worked on.
    """
    events, host, dispatches = measured.events, measured.host, measured.dispatches
    assert events.calls is not None, "read with_calls"
    tokens = [tokens_of(window.name) for window in windows] if tokens is None else tokens
    call_of_row = np.full(len(events.kind), -1, dtype=np.int64)
    call_of_row[events.rows(EventKind.OP)] = events.calls.call_of_op
    call_of = call_of_row[host.op_row]
    op_end = host.key(events.thread[host.op_row], events.end_ns[host.op_row])
    outer = next_outer(op_end)
    activity = np.where(dispatches.first_kernel >= 0, dispatches.first_kernel, dispatches.first)
    kernel = measured.activities.name[activity].astype(np.int64)
    rules = _Rules(events.calls, events.names, tokens, model)
    step = group_by_time(windows, dispatches.launch_ns) if windows else np.full(len(dispatches), -1)

    at = innermost(host.op_start, op_end, dispatches.launch_key)
    op, call, work, reason = (np.full(len(dispatches), -1, dtype=np.intp) for _ in range(4))
    leaf_name = dispatches.leaf_name
    pending = np.flatnonzero(chosen & (at >= 0))
    while len(pending):
        own = call_of[at[pending]]
        around = np.where(outer[at[pending]] >= 0, call_of[outer[at[pending]]], -1)
        answer = rules.ask(own, kernel[pending], step[pending], around)
        known = answer >= 0
        found, rest = pending[known], pending[~known]
        op[found], call[found], work[found] = at[found], own[known], answer[known]
        reason[rest] = np.where(reason[rest] < 0, -2 - answer[~known], reason[rest])
        at[rest] = outer[at[rest]]
        pending = rest[at[rest] >= 0]
    _share(op, work, dispatch_ns, rules.works)
    lost = _counted_within(op, work, outer, rules.works)
    reason[lost] = rules.number(_WITHIN)
    op[lost] = call[lost] = work[lost] = -1
    reason[work >= 0] = -1
    for row in np.flatnonzero(chosen & (work < 0) & (reason < 0)).tolist():
        name = leaf_name[row]
        reason[row] = rules.number(f"no rule for {events.names[name]}" if name >= 0 else _NO_OP)
    return Charges(op, call, work, reason, tuple(rules.works), tuple(rules.reasons))


class _Rules:
    """Answers rules, each distinct question once: a place in `works`, -1 without a rule, -2 - place in `reasons`."""

    def __init__(
        self, calls: Calls, names: Sequence[str], tokens: Sequence[StepTokens | None], model: ModelShape | None
    ) -> None:
        self.works: list[Work] = []
        self.reasons: list[str] = []
        self._place: dict[Work, int] = {}
        self._number: dict[str, int] = {}
        self._calls, self._names, self._tokens, self._model = calls.calls, names, tokens, model
        self._convolutions = frozenset(c for call in self._calls if (c := convolution_of(call)) is not None)
        rules = [rule_of(call.op) for call in self._calls]
        self._is_ruled = np.array([rule is not None for rule in rules], dtype=bool)
        self._is_of_step = np.array([rule is not None and rule.of_step for rule in rules], dtype=bool)
        self._is_of_outer = np.array([rule is not None and rule.of_outer for rule in rules], dtype=bool)
        self._known: dict[tuple[int, ...], int] = {}

    def ask(self, call: Index, kernel: Int64, step: Index, outer: Index) -> Index:
        """Answer for columns of questions."""
        answer = np.full(len(call), -1, dtype=np.intp)
        ruled = self._is_ruled[call]
        if not ruled.any():
            return answer
        call, kernel = call[ruled], kernel[ruled]
        step = np.where(self._is_of_step[call], step[ruled], -1)
        outer = np.where(self._is_of_outer[call], outer[ruled], -1)
        questions, index = np.unique(np.stack((call, kernel, step, outer)), axis=1, return_inverse=True)
        answers = [self._answer(*question) for question in questions.T.tolist()]
        answer[ruled] = np.array(answers, dtype=np.intp)[index.reshape(-1)]
        return answer

    def _answer(self, call: int, kernel: int, step: int, outer: int) -> int:
        key = (call, kernel, step, outer)
        if key not in self._known:
            around = Around(
                kernel=self._names[kernel],
                outer=self._call(outer),
                tokens=self._tokens[step] if step >= 0 else None,
                convolutions=self._convolutions,
                model=self._model,
            )
            found = work_of(self._calls[call], around)
            if isinstance(found, Work):
                self._known[key] = self._place.setdefault(found, len(self.works))
                self.works += [found] if self._known[key] == len(self.works) else []
            else:
                self._known[key] = -2 - self.number(found)
        return self._known[key]

    def number(self, reason: str) -> int:
        """Return the place of a reason."""
        if reason not in self._number:
            self._number[reason] = len(self.reasons)
            self.reasons.append(reason)
        return self._number[reason]

    def _call(self, number: int) -> Call | None:
        return self._calls[number] if number >= 0 else None


def _share(op: Index, work: Index, dispatch_ns: Int64, works: Sequence[Work]) -> None:
    """Give all dispatches of an op one work: that told by a kernel with a reduced algorithm, else by the longest."""
    is_reduced = np.array([each.is_reduced for each in works], dtype=bool)
    rows = np.flatnonzero(op >= 0)
    if not len(rows):
        return
    rows = rows[np.lexsort((-dispatch_ns[rows], ~is_reduced[work[rows]], op[rows]))]
    is_first = np.append(True, op[rows][1:] != op[rows][:-1])[: len(rows)]
    work[rows] = work[rows[is_first]][np.cumsum(is_first) - 1]


def _counted_within(op: Index, work: Index, outer: Index, works: Sequence[Work]) -> NDArray[np.intp]:
    """Return the dispatches charged to an op whose products are made by ops within it that are charged themselves."""
    is_matrix = np.array([each.is_matrix for each in works], dtype=bool)
    rows = np.flatnonzero(work >= 0)
    rows = rows[is_matrix[work[rows]]] if len(rows) else rows
    is_around = np.zeros(len(outer) + 1, dtype=bool)
    at = np.unique(op[rows])
    while len(at := np.unique(outer[at])) and at[-1] >= 0:
        at = at[(at >= 0) & ~is_around[at]]
        is_around[at] = True
    return np.asarray(rows[is_around[op[rows]]], dtype=np.intp)
