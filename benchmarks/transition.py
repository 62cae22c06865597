"""The batch from which on the device decides, of a vLLM on the CPU, beside how long its steps take unrecorded.

    python benchmarks/transition.py [--rounds N] [--only MODEL…] [--json FILE] [--strict]

Each model runs in one process; the batch is 1, 2, 4 … 64 requests, in an order drawn anew each round. Decode steps are
timed without a profiler, and some of each batch recorded. What `taxbreak transition` reads from the recordings (on the
CPU backend HDBI alone, of recorded steps) is compared with the plain steps that the worker timed right before: from
which batch on compute takes half of one. Beside it stands where the timed step, the engine's loop in it, is twice that
of one request, which would be the same if the host took as long for any batch.

Prints a table a model and writes all to `benchmarks/results/transition.json`.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import msgspec
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from turned import Child, Turn

from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.insight.transition import transition
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.transition import SizedStep, Transition
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms

RESULTS = Path(__file__).resolve().parent / "results" / "transition.json"
SIZES = (1, 2, 4, 8, 16, 32, 64)
RECORDINGS = 2  # of each batch in a round, for the machine is not the same in all of them
PAIRS = 3  # of runs in a round
MODELS: Mapping[str, Mapping[str, int]] = {
    "4 layers of 128": {},
    "4 layers of 256": {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64},
    "2 layers of 512": {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "head_dim": 64}
    | {"num_key_value_heads": 4, "num_hidden_layers": 2},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One batch: the step from start to start as timed in rounds, and medians over its recordings; ns."""

    batch: int
    step_ns: int
    plain_ns: int
    compute_ns: int
    orchestration_ns: int
    hdbi: float
    dilation: float | None
    rounds_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One model: where its recordings, its plain steps and the double of the first say that it turns."""

    model: str
    points: tuple[Point, ...]
    transition: Transition
    by_times: tuple[int, int] | None
    by_doubling: tuple[int, int] | None

    @property
    def agrees(self) -> bool:
        """Whether recordings and plain steps tell the same to within one bucket; what was not reached is the next."""
        first, other = (
            len(SIZES) if between is None else SIZES.index(between[1])
            for between in (self.transition.between, self.by_times)
        )
        return abs(first - other) <= 1


def main() -> None:
    """Measure, compare, print, write."""
    options = _options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    load_before, started_s = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tr-") as folder:
        os.environ["VLLM_CACHE_ROOT"] = f"{folder}/vllm"
        found = [
            _measured(name, Path(folder) / str(number), options)
            for number, name in enumerate(MODELS)
            if not options.only or name in options.only
        ]
    result = {
        "machine": describe_machine("vllm", "torch", "taxbreak-vllm")
        | {"load_1min": {"before": load_before, "after": os.getloadavg()[0]}},
        "took_s": round(time.monotonic() - started_s),
        "models": [msgspec.to_builtins(asdict(each), str_keys=True) | {"agrees": each.agrees} for each in found],
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for each in found:
        _print(each)
    if options.strict and not all(each.agrees for each in found):
        sys.exit(1)


def _measured(name: str, folder: Path, options: argparse.Namespace) -> Found:
    """Time and record each batch of a model."""
    path = write_tiny_llama(folder / "model")
    config = json.loads((path / "config.json").read_text()) | MODELS[name]
    (path / "config.json").write_text(json.dumps(config))
    rounds: dict[int, list[int]] = {size: [] for size in SIZES}
    captures: dict[int, list[Path]] = {size: [] for size in SIZES}
    draw = random.Random(0)
    with Child(path, folder / "run", requests=max(SIZES)) as child:
        for size in SIZES:  # the first steps of a batch are slow
            child.alternate(Turn(requests=size), Turn(requests=size), 1)
        for _ in range(options.rounds):
            for size in draw.sample(SIZES, len(SIZES)):
                turn = Turn(requests=size)
                rounds[size] += [
                    ns for before, after, _ in child.alternate(turn, turn, PAIRS) for ns in (before, after)
                ]
                captures[size] += child.record(turn, RECORDINGS)
        steps: list[SizedStep] = []
        points = []
        for size in SIZES:
            point, own = _point(size, rounds[size], captures[size])
            points.append(point)
            steps += own
    times_ns = [point.step_ns for point in points]
    return Found(
        model=name,
        points=tuple(points),
        transition=transition(steps, Phase.DECODE),
        by_times=_crossing([point.compute_ns / point.plain_ns for point in points], 0.5),
        by_doubling=_crossing(times_ns, 2 * times_ns[0]),
    )


def _point(size: int, rounds_ns: Sequence[int], captures: Sequence[Path]) -> tuple[Point, list[SizedStep]]:
    breakdowns = []
    for capture in captures:
        with Recording.open(capture, Terms()) as recording:
            breakdowns.append(recording.breakdown)
    found = [breakdown.steps[0] for breakdown in breakdowns]
    if not found or {step.batch.requests for step in found} != {size}:
        raise ChildProcessError(f"recorded batches of {[step.batch.requests for step in found]} requests, not {size}")
    dilations = [b.calibration.dilation for b in breakdowns if b.calibration.dilation is not None]
    point = Point(
        batch=size,
        step_ns=round(median(rounds_ns)),
        plain_ns=round(median(b.calibration.plain_ns or 0 for b in breakdowns)),
        compute_ns=round(median(step.device.active_ns for step in found)),
        orchestration_ns=round(median(step.taxes.orchestration_ns or 0 for step in found)),
        hdbi=median(step.hdbi or 0.0 for step in found),
        dilation=median(dilations) if dilations else None,
        rounds_ns=tuple(rounds_ns),
    )
    return point, [SizedStep.of(b.steps[0], dilation=b.calibration.dilation) for b in breakdowns]


def _crossing(values: Sequence[float], threshold: float) -> tuple[int, int] | None:
    """Return the last size before all that follow reach a threshold, and the first of these."""
    at = len(values)
    while at and values[at - 1] >= threshold:
        at -= 1
    return (SIZES[at - 1], SIZES[at]) if 0 < at < len(values) else None


def _print(found: Found) -> None:
    table = Table(title=found.model)
    for head in (
        "requests",
        "start to start",
        "worker's step",
        "compute",
        "orchestration",
        "HDBI",
        "dilation",
    ):
        table.add_column(head, justify="right")
    for point in found.points:
        table.add_row(
            str(point.batch),
            f"{point.step_ns / 1e6:.2f} ms",
            f"{point.plain_ns / 1e6:.2f} ms",
            f"{point.compute_ns / 1e6:.2f} ms",
            f"{point.orchestration_ns / 1e6:.2f} ms",
            f"{point.hdbi:.3f}",
            "–" if point.dilation is None else f"{point.dilation:.2f}",
        )
    console = Console()
    console.print(table)
    told = found.transition.between or found.transition.reason
    console.print(f"recordings: {told}; plain steps: {found.by_times}; twice the first: {found.by_doubling}")
    console.print("agree to within one bucket" if found.agrees else "do NOT agree")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="*", choices=MODELS)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--strict", action="store_true", help="exit 1 where the two do not agree")
    return parser.parse_args()


if __name__ == "__main__":
    main()
