"""Add steps of separate captures into one total."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from taxbreak_vllm.model.breakdown import (
    DeviceTime,
    EnginePart,
    ExposedTax,
    FamilyShare,
    HostTime,
    IdleTime,
    Iteration,
    StepBreakdown,
    Taxes,
    Tier,
    TopRow,
    hdbi,
    sum_or_none,
)
from taxbreak_vllm.model.step import Batch


def add_steps(steps: Iterable[StepBreakdown]) -> StepBreakdown:
    """Add steps of separate captures into one total: sums of parts, HDBI of the sums, families added, top rows merged.

    A sum of `None`s stays None; steps without an HDBI have no part in that of the sum. The device's window and all its
    parts are of the steps that know their idle time by cause; where none does, of those that know it as a whole; else
    of all. Not for the steps of one trace, whose device windows may overlap: a trace's own `total` is taken over the
    whole trace.
    """
    parts = list(steps)

    def sum_known(values: Iterable[int | None]) -> int | None:
        return sum_or_none(values) if parts else 0

    def add(cls: type, values: Iterable[Any]) -> Any:  # noqa: ANN401 - any of the all-integer dataclasses above
        rows = list(values)
        names = cls.__dataclass_fields__  # type: ignore[attr-defined]
        return cls(**{name: sum_known(getattr(row, name) for row in rows) for name in names})

    taxes = Taxes(**{name: sum_or_none(getattr(s.taxes, name) for s in parts) for name in Taxes.__dataclass_fields__})
    whole = _with_whole_device(parts)
    device = DeviceTime(
        **{name: sum(getattr(s.device, name) for s in whole) for name in ("window_ns", "active_ns", "other_active_ns")},
        kernel_sum_ns=sum(s.device.kernel_sum_ns for s in parts),
        idle_ns=sum_known(s.device.idle_ns for s in whole),
        idle=add(IdleTime, (s.device.idle for s in parts)),
    )
    batch = Batch(**{name: sum_or_none(getattr(s.batch, name) for s in parts) for name in Batch.__dataclass_fields__})
    families = {
        family: add(FamilyShare, (s.families[family] for s in parts if family in s.families))
        for family in sorted({family for s in parts for family in s.families})
    }
    phases = {s.phase for s in parts}
    modes = {s.graph_mode for s in parts}
    valid = [s for s in parts if s.hdbi is not None]
    total = StepBreakdown(
        phase=phases.pop() if len(phases) == 1 else None,
        graph_mode=modes.pop() if len(modes) == 1 else None,
        batch=batch,
        window_ns=sum(s.window_ns for s in parts),
        host=add(HostTime, (s.host for s in parts)),
        device=device,
        taxes=taxes,
        exposed=add(ExposedTax, (s.exposed for s in parts)),
        iteration=_add_iterations([s.iteration for s in parts]),
        tklqt_ns=sum_or_none(s.tklqt_ns for s in parts),
        tklqt_per_kernel_ns=sum_or_none(s.tklqt_per_kernel_ns for s in parts),
        inference_latency_ns=sum_or_none(s.inference_latency_ns for s in parts),
        launches=sum_or_none(s.launches for s in parts),
        kernels=sum(s.kernels for s in parts),
        unique_kernels=max((s.unique_kernels for s in parts), default=0),
        families=families,
        top=_merge_top(parts),
        notes=tuple(dict.fromkeys(note for s in parts for note in s.notes)),
    )
    return derived(
        total,
        active_ns=sum(s.device.active_ns for s in valid),
        orchestration_ns=sum_or_none(s.taxes.orchestration_ns for s in valid),
    )


def _with_whole_device(parts: list[StepBreakdown]) -> list[StepBreakdown]:
    """Return the steps whose parts of the device's window add up to it, as far as any step's do."""
    by_cause = [s for s in parts if s.device.idle.host_ns is not None]
    return by_cause or [s for s in parts if s.device.idle_ns is not None] or parts


def derived(total: StepBreakdown, *, active_ns: int, orchestration_ns: int | None) -> StepBreakdown:
    """Fill in what follows from sums; `active_ns` and `orchestration_ns` are of the steps that have an HDBI."""
    output_tokens = total.batch.output_tokens
    return replace(
        total,
        hdbi=hdbi(active_ns, orchestration_ns),
        akd_ns=total.device.kernel_sum_ns // total.kernels if total.kernels else None,
        kernels_per_output_token=total.kernels / output_tokens if output_tokens else None,
    )


def _add_iterations(found: list[Iteration | None]) -> Iteration | None:
    """Add iterations; None unless every step has one."""
    parts = [iteration for iteration in found if iteration is not None]
    if not parts or len(parts) < len(found):
        return None
    causes = dict.fromkeys(cause for part in parts for cause in part.idle)
    names = dict.fromkeys(name for part in parts for name in part.engine)
    return Iteration(
        window_ns=sum(part.window_ns for part in parts),
        active_ns=sum(part.active_ns for part in parts),
        other_active_ns=sum(part.other_active_ns for part in parts),
        idle_ns=sum(part.idle_ns for part in parts),
        idle={cause: sum(part.idle.get(cause, 0) for part in parts) for cause in causes},
        engine={
            name: EnginePart(
                busy_ns=sum(part.engine[name].busy_ns for part in parts if name in part.engine),
                exposed_ns=sum(part.engine[name].exposed_ns for part in parts if name in part.engine),
            )
            for name in names
        },
    )


def merged_rows(rows: Iterable[TopRow]) -> list[TopRow]:
    """Add the rows of each (op, kernel) pair, in the order in which pairs come; of several tiers the least stands."""
    by_pair: dict[tuple[str, str], list[TopRow]] = {}
    for row in rows:
        by_pair.setdefault((row.op, row.kernel), []).append(row)
    order = list(Tier)
    return [
        replace(
            own[0],
            count=sum(row.count for row in own),
            delta_ft_ns=sum_or_none(row.delta_ft_ns for row in own),
            delta_ct_ns=sum_or_none(row.delta_ct_ns for row in own),
            delta_kt_ns=sum_or_none(row.delta_kt_ns for row in own),
            active_ns=sum(row.active_ns for row in own),
            tier=max((row.tier for row in own), key=order.index),
        )
        for own in by_pair.values()
    ]


def _merge_top(steps: list[StepBreakdown], limit: int = 50) -> tuple[TopRow, ...]:
    merged = merged_rows(row for step in steps for row in step.top)
    merged.sort(key=lambda row: (row.delta_ft_ns or 0) + (row.delta_ct_ns or 0) + row.active_ns, reverse=True)
    return tuple(merged[:limit])
