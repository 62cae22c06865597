"""On which terms a trace is measured: the one value that decides every figure of it beside the file itself."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taxbreak_vllm.model.breakdown import Attribution
from taxbreak_vllm.trace.kernels import KernelRules

if TYPE_CHECKING:  # it opens SQLite, which most traces do without
    from taxbreak_vllm.baselines.store import Baselines


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a trace is to be measured.

    `floor_ns` is a measured T_sys in ns; without it that of `baselines`, else the trace's own quickest launches stand
    for it. `op_cost_ns` is what the profiler added to each op, to be taken off ΔFT; None: what the capture says of it,
    if it is calibrated. `baselines` holds what `taxbreak replay` and `taxbreak floor` measured. `rank` chooses a
    process of a file that joins several, from 0 on.
    """

    rules: KernelRules = field(default_factory=KernelRules.load)
    floor_ns: int | None = None
    attribution: Attribution = Attribution.EXCLUSIVE
    op_cost_ns: int | None = None
    baselines: "Baselines | None" = None
    rank: int | None = None

    @property
    def needs_whole(self) -> bool:
        """Whether a trace cannot be measured part by part: published joins and calls go by the order of all its ops."""
        return self.attribution is Attribution.PAPER or self.baselines is not None or self.rank is not None
