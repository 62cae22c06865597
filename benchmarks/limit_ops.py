"""Work per op from recorded shapes, beside torch's own counter and TraceLens's definitions; how much time it covers.

    python benchmarks/limit_ops.py [--traces DIR…] [--json FILE] [--strict]

Every distinct call of a GEMM, a convolution or an SDPA in the traces is counted three times: by our rules; by
`torch.utils.flop_counter` on the same call with tensors that hold no data, whose sizes also give the bytes; and by the
definitions of TraceLens (`published_work.py`). Convolutions of traces without values get those that fit their shapes.
Prints both comparisons and the coverage of linked device time, and writes `benchmarks/results/limit_ops.json`.
`--strict` exits 1 where an op differs by more than 0.5 %.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from published_work import completed, is_modeled, published
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from taxbreak_vllm.limit.ops import attention, conv, gemm
from taxbreak_vllm.limit.ops.arguments import Around
from taxbreak_vllm.limit.ops.conv import convolution_of
from taxbreak_vllm.limit.ops.table import work_of
from taxbreak_vllm.limit.trace import limit_of
from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.model.limit import Limit, Work
from taxbreak_vllm.replay.inputs import RefusedError, prepare
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.calls import Call, Input
from taxbreak_vllm.trace.dispatches import innermost, next_outer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "limit_ops.json"
KINDS = {"gemm": gemm.RULES, "conv": conv.RULES, "sdpa": attention.RULES}
MOST_OFF = 0.005
_OLD_TYPES = ("Int", "Bool", "Double", "GenericList")  # of traces that hold no values


@dataclass(frozen=True, slots=True)
class Compared:
    """One call counted by us and by another: ratios of ours to theirs, None where they do not tell."""

    kind: str
    op: str
    shapes: str
    peer: str
    flops: float | None
    bytes: float | None
    reason: str = ""

    @property
    def is_off(self) -> bool:
        return any(ratio is not None and abs(ratio - 1) > MOST_OFF for ratio in (self.flops, self.bytes))


@dataclass(frozen=True, slots=True)
class Covered:
    """A trace: the share of linked device time whose work is known, ours and by the ops that TraceLens models."""

    trace: str
    device_ms: float
    ours: float | None
    tracelens_at_most: float | None
    uncovered: dict[str, float]
    reason: str = ""


def main() -> None:
    """Compare, print, write."""
    options = _options()
    paths = {path.name: path for folder in options.traces for path in sorted(folder.glob("*.json.gz"))}
    if not paths:
        print("no traces found: give --traces DIR", file=sys.stderr)
        return
    compared: dict[tuple[Call, str], Compared] = {}
    covered = []
    for path in paths.values():
        try:
            with Recording.open(path, with_calls=True) as recording:
                covered.append(_covered(path.name, recording))
                compared |= {(call, each.peer): each for call, each in _compared(recording)}
        except TraceFormatError as error:
            print(f"skipped {error}", file=sys.stderr)
    rows = list(compared.values())
    _print(rows, covered)
    found = {
        "machine": describe_machine("torch", "numpy"),
        "summary": _summary(rows),
        "coverage": [asdict(each) for each in covered],
        "off": [asdict(each) for each in rows if each.is_off],
    }
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.strict and any(each.is_off and not each.reason for each in rows):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [ROOT.parent / "shared" / "traces", ROOT / "tests" / "data" / "traces"]
    parser.add_argument("--traces", type=Path, nargs="+", default=here, help="folders of traces")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--strict", action="store_true", help="exit 1 where an op is off without a reason")
    return parser.parse_args()


def _compared(recording: Recording) -> Iterator[tuple[Call, Compared]]:
    calls = recording.events.calls
    assert calls is not None
    shapes = frozenset(found for call in calls.calls if (found := convolution_of(call)) is not None)
    for recorded in calls.calls:
        kind = next((kind for kind, rules in KINDS.items() if recorded.op in rules), None)
        ours = work_of(recorded, Around(convolutions=shapes))
        call = recorded
        if recorded.op == "aten::cudnn_convolution_backward":
            kind, ours = "conv", _both_gradients(recorded)
        if kind == "conv":
            call = completed(recorded, shapes)
        if kind is None or not isinstance(ours, Work):
            continue
        for peer, theirs in (("torch", _by_torch(call)), ("TraceLens's definitions", published(call))):
            if theirs is not None:
                found = _ratios(kind, call, ours, peer, *theirs)
                # recorded as two calls, each of which reads the gradient; torch's is one
                is_split = peer == "torch" and call.op != recorded.op
                yield recorded, replace(found, bytes=None, reason="") if is_split else found


def _both_gradients(call: Call) -> Work | str:
    """Add the parts of a backward call that older traces name one by one."""
    parts = [work_of(Call(f"{call.op}_{part}", ()), Around(outer=call)) for part in ("input", "weight")]
    if not all(isinstance(part, Work) for part in parts):
        return "a part is not told"
    return replace(parts[0], flops=sum(part.flops for part in parts), bytes=sum(part.bytes for part in parts))


def _ratios(kind: str, call: Call, ours: Work, peer: str, flops: int, num_bytes: int) -> Compared:
    """Divide; torch counts no bias, so ours is compared without."""
    own = ours.flops
    if peer == "torch" and kind == "gemm" and flops and own != flops:
        own -= _bias_adds(call)
    shapes = " ".join("x".join(map(str, each.dims)) for each in call.inputs or () if each.dims)
    found = Compared(kind, call.op, shapes, peer, own / flops if flops else None, ours.bytes / num_bytes)
    return replace(found, reason=_reason(call, found)) if found.is_off else found


def _bias_adds(call: Call) -> int:
    """m·n of a call with a bias."""
    assert call.inputs is not None
    if call.op in ("aten::addmm", "aten::baddbmm"):
        a, b = call.inputs[1], call.inputs[2]
        return int(np.prod(a.dims[:-1])) * b.dims[-1]
    return int(np.prod(call.inputs[0].dims[:-1])) * call.inputs[1].dims[0] if call.inputs[2].dims else 0


def _reason(call: Call, found: Compared) -> str:
    if found.peer == "torch" and found.kind == "sdpa" and found.flops == 1.0:
        return "torch's op also returns the sums of the softmax, which its backward pass reads"
    strides = [each.strides for each in call.inputs or () if each.strides]
    if any(0 in each for each in strides):
        return "an expanded operand is read once by us, as often as it is repeated by the other"
    return ""


def _by_torch(call: Call) -> tuple[int, int] | None:
    """Count with torch's own counter, and add up its tensors; None where it knows no such op or lacks arguments."""
    inputs = tuple(Input("") if each.type in _OLD_TYPES else each for each in call.inputs or ())
    counter = FlopCounterMode(display=False)
    try:
        prepared = prepare(replace(call, inputs=inputs), device="meta", max_bytes=2**60)
        with counter:
            result: Any = prepared()
    except (RefusedError, NotImplementedError, RuntimeError):
        return None
    flops = counter.get_total_flops()
    results = result if isinstance(result, tuple | list) else (result,)
    written = results[:2] if call.op == "aten::convolution_backward" else results[:1]
    given = [each for each in (*prepared.args, *prepared.kwargs.values()) if isinstance(each, torch.Tensor)]
    read = sum(min(each.untyped_storage().nbytes(), each.numel() * each.element_size()) for each in given)
    return (flops, read + sum(each.numel() * each.element_size() for each in written)) if flops else None


def _covered(name: str, recording: Recording) -> Covered:
    found = limit_of(recording)
    if not isinstance(found, Limit):
        return Covered(name, 0.0, None, None, {}, reason=found)
    uncovered = {each.reason: round(each.device_ns / found.device_ns, 4) for each in found.uncovered}
    theirs = _modeled_ns(recording) / found.device_ns
    return Covered(name, found.device_ns / 1e6, found.coverage, theirs, uncovered)


def _modeled_ns(recording: Recording) -> int:
    """Device time of kernels within an op that TraceLens models, whether or not it could answer there."""
    measured = recording.measured
    events, host, activities, dispatches = measured.events, measured.host, measured.activities, measured.dispatches
    op_end = host.key(events.thread[host.op_row], events.end_ns[host.op_row])
    outer, at = next_outer(op_end), innermost(host.op_start, op_end, dispatches.launch_key)
    is_known = np.array([is_modeled(name) for name in events.names])[events.name[host.op_row]]
    is_within = np.zeros(len(dispatches), dtype=bool)
    while (at >= 0).any():
        is_within |= (at >= 0) & is_known[at]
        at = np.where(at >= 0, outer[at], -1)
    own = (activities.dispatch >= 0) & activities.is_kernel & (activities.device == measured.device)
    own &= is_within[activities.dispatch] & ~dispatches.is_graph[activities.dispatch]
    return int((activities.end_ns - activities.start_ns)[own].sum())


def _summary(rows: Sequence[Compared]) -> list[dict[str, object]]:
    def worst(own: Sequence[Compared], name: str) -> float | None:
        off = [abs(ratio - 1) for each in own if (ratio := getattr(each, name)) is not None]
        return max(off, default=None)

    groups = sorted({(each.kind, each.peer) for each in rows})
    found = []
    for kind, peer in groups:
        own = [each for each in rows if (each.kind, each.peer) == (kind, peer)]
        off = {"flops_off": worst(own, "flops"), "bytes_off": worst(own, "bytes")}
        found.append({"kind": kind, "peer": peer, "calls": len(own), **off})
    return found


def _print(rows: Sequence[Compared], covered: Sequence[Covered]) -> None:
    console = Console()
    table = Table("kind", "peer", "distinct calls", "FLOPs off by at most", "bytes off by at most")
    for row in _summary(rows):
        shares = [f"{row[name]:.3%}" if row[name] is not None else "–" for name in ("flops_off", "bytes_off")]
        table.add_row(str(row["kind"]), str(row["peer"]), str(row["calls"]), *shares)
    console.print(table)
    for each in rows:
        if each.is_off:
            why = each.reason or "no reason known"
            console.print(f"{each.op} {each.shapes} ({each.peer}): FLOPs {each.flops}, bytes {each.bytes}: {why}")
    table = Table("trace", "device ms", "covered", "ops TraceLens models", "not covered")
    for trace in covered:
        lost = trace.reason or ", ".join(f"{name} {share:.1%}" for name, share in [*trace.uncovered.items()][:2])
        shares = ["–" if each is None else f"{each:.1%}" for each in (trace.ours, trace.tracelens_at_most)]
        table.add_row(trace.trace.removesuffix(".json.gz"), f"{trace.device_ms:.2f}", *shares, lost)
    console.print(table)


if __name__ == "__main__":
    main()
