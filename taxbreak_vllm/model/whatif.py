"""What a step would take under a change, or why that can't be said: `taxbreak.whatif/1`."""

from dataclasses import dataclass
from typing import Any

import msgspec

from taxbreak_vllm.model.step import Phase

WHATIF_SCHEMA = "taxbreak.whatif/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A check that a recording passes before anything is predicted from it.

    `value` is a share of one; it may be `limit` at most, or at least where `is_least`.
    """

    name: str
    value: float
    limit: float
    reason: str
    is_least: bool = False

    @property
    def passes(self) -> bool:
        """Whether the value keeps to its limit."""
        return self.value >= self.limit if self.is_least else self.value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The mean of some steps as recorded and under a change, ns; `phase` None: of the whole recording.

    `low_ns` and `high_ns` are where it may lie. `host_free_ns` and `kernels_free_ns` are the bounds that no host and no
    kernel, however quick, can pass. The `plain_*` are the same of a step that nobody records: how long plain steps like
    it take (its iteration where outputs are asynchronous), and would take; None where that is not known.
    """

    phase: Phase | None
    steps: int
    observed_ns: int
    predicted_ns: int
    low_ns: int
    high_ns: int
    host_free_ns: int
    kernels_free_ns: int
    plain_ns: int | None = None
    plain_predicted_ns: int | None = None
    plain_low_ns: int | None = None
    plain_high_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """A change to a recording and what comes of it.

    `refused` says why nothing is predicted (None: it is). `refuted_by` is what would show the prediction wrong, and
    `command` what measures that. `dilation` is the recorded step / plain step where that is known; `no_plain` says why
    nothing is said of plain steps.
    """

    path: str
    change: str
    gates: tuple[Gate, ...]
    window: Prediction | None = None
    steps: tuple[Prediction, ...] = ()
    refused: str | None = None
    refuted_by: str = ""
    command: str = ""
    dilation: float | None = None
    no_plain: str | None = None
    notes: tuple[str, ...] = ()
    schema: str = WHATIF_SCHEMA

    def to_builtins(self) -> dict[str, Any]:
        """Return it as dicts, lists and numbers."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        for gate, row in zip(self.gates, tree["gates"], strict=True):
            row["passes"] = gate.passes
        return tree

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self.to_builtins())
