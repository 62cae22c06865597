"""What `taxbreak whatif` predicts of a vLLM on the CPU, and what that server then takes.

    python benchmarks/whatif_pairs.py [--rounds N] [--only MODEL…] [--json FILE] [--folder DIR]

Each model runs in one process whose host is turned between rounds, in an order drawn anew: Python that takes longer
before each linear layer, each layer or each step, a wait in each step, Python functions traced, two threads for one.
A pair is two of these: of the first a step is recorded and whatif is asked, the second is measured. What is compared
are ratios to the first, of the same rounds. Eager against compiled are two processes that take turns.

- A delay is asked as `--host python=F`, F from what whatif says that Python takes of the plain step.
- Tracing slows Python by a factor that is known of the other models alone: `--host python=LOW..HIGH` of these.
- Two threads are asked as `--like`: the ops of the recording replayed with two threads, beside replays with one.

Prints a table and writes it to `benchmarks/results/whatif_pairs.json`. A folder keeps what was measured and recorded:
with the same folder again nothing is measured anew, and what is there is asked about once more.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import msgspec
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from turned import Child, Turn

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.model.whatif import Prediction, WhatIf
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.whatif.asked import Asked, asked

RESULTS = Path(__file__).resolve().parent / "results" / "whatif_pairs.json"
BASE, TRACED, TWO, COMPILED = "as it is", "traced", "two threads", "compiled"
RECORDED = (BASE, "linear")
LARGE = 0.1  # a change is large enough to have a sign


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A tiny Llama: what of its configuration is different, how many requests decode together."""

    name: str
    requests: int
    shape: Mapping[str, int] = field(default_factory=dict)
    threads: bool = False
    compiled: bool = False


def _wide(hidden: int, layers: int) -> dict[str, int]:
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 128, "head_dim": 64}
    return {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers, **heads}


MODELS = (
    Model(name="4 layers of 128, 1 request", requests=1, compiled=True),
    Model(name="4 layers of 128, 32 requests", requests=32),
    Model(name="12 layers of 128, 4 requests", requests=4, shape={"num_hidden_layers": 12}, compiled=True),
    Model(name="4 layers of 512, 4 requests", requests=4, shape=_wide(512, 4), compiled=True),
    Model(name="2 layers of 1024, 8 requests", requests=8, shape=_wide(1024, 2), threads=True),
    Model(name="4 layers of 1024, 1 request", requests=1, shape=_wide(1024, 4), threads=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A change of a model: what was asked, what whatif said, what was measured; ratios to the plain step before."""

    model: str
    change: str
    asked: str
    step_ms: float
    measured: float
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    refused: str | None = None

    @property
    def error(self) -> float | None:
        """Return by how much the prediction is off."""
        return None if self.predicted is None else self.predicted / self.measured - 1

    @property
    def is_inside(self) -> bool | None:
        """Tell whether the interval holds what was measured."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured <= self.high

    @property
    def has_wrong_sign(self) -> bool:
        """Tell whether a large change was predicted the wrong way."""
        return (
            self.predicted is not None
            and abs(self.measured - 1) > LARGE
            and (self.predicted - 1) * (self.measured - 1) < 0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model's rounds: of each turn the median step of each round, ns; recordings; what a step passes."""

    model: Model
    turns: dict[str, Turn]
    rounds: dict[str, list[float]]
    captures: dict[str, str]
    added_ns: dict[str, int]
    stores: tuple[str, str] | None

    def ratio(self, before: str, after: str) -> float:
        """Return how many times as long a step takes, as the median over rounds."""
        return median(b / a for a, b in zip(self.rounds[before], self.rounds[after], strict=True))


def main() -> None:
    """Measure, ask, print, write."""
    options = _options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    load_before, started_s = os.getloadavg()[0], time.monotonic()
    chosen = [model for model in MODELS if not options.only or model.name in options.only]
    with tempfile.TemporaryDirectory(prefix="wp-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        os.environ["VLLM_CACHE_ROOT"] = str(folder / "vllm")  # what vLLM finds out about a model's class, it does once
        found = [_measured(model, folder / str(MODELS.index(model)), options) for model in chosen]
        pairs = [pair for each in found for pair in _pairs(each, found)]
    summed = _sum_up(pairs)
    result = {
        "machine": describe_machine("vllm", "torch", "taxbreak-vllm")
        | {"load_1min": {"before": load_before, "after": os.getloadavg()[0]}},
        "took_s": round(time.monotonic() - started_s),
        **summed,
        "drift": {each.model.name: _drift(each.rounds[BASE]) for each in found},
        "pairs": [asdict(pair) | {"error": pair.error, "inside": pair.is_inside} for pair in pairs],
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    _print(pairs, summed)


def _measured(model: Model, folder: Path, options: argparse.Namespace) -> Measured:
    """Read what was measured of a model, or measure it."""
    kept = folder / "measured.json"
    if kept.is_file():
        return msgspec.json.decode(kept.read_bytes(), type=Measured)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was broken off
    found = _measure(model, folder, options)
    kept.write_bytes(msgspec.json.encode(found))
    return found


def _measure(model: Model, folder: Path, options: argparse.Namespace) -> Measured:
    """Run a model's rounds, record a step of what pairs begin with, replay its ops."""
    path = write_tiny_llama(folder / "model")
    config = json.loads((path / "config.json").read_text()) | model.shape
    (path / "config.json").write_text(json.dumps(config))
    _say(f"{model.name}: starting")
    with Child(path, folder / "eager", requests=model.requests) as eager:
        step_ns = min(eager.time(Turn(), options.steps))  # the first round of a server is slow
        turns = _turns(step_ns, eager.calls, with_threads=model.threads)
        rounds: dict[str, list[float]] = {name: [] for name in (*turns, *([COMPILED] if model.compiled else []))}
        found: dict[str, list[Path]] = {name: [] for name in RECORDED}
        with ExitStack() as others:
            compiled = {}
            if model.compiled:
                other = Child(path, folder / "compiled", requests=model.requests, compiled=True)
                compiled[COMPILED] = others.enter_context(other)
                other.time(Turn(), options.steps)
            for number in range(options.rounds):
                _take_turns(rounds, turns, compiled, eager, number, options.steps)
                if number % 2:
                    for name in RECORDED:
                        found[name] += eager.record(turns[name], 2)
        captures = {name: str(_typical(paths, median(rounds[name]))) for name, paths in found.items()}
        added_ns = {name: turn.added_ns(eager.calls) for name, turn in turns.items()}
    stores = _replayed(Path(captures[BASE]), folder) if model.threads else None
    said = ", ".join(f"{name} {median(each) / 1e6:.2f}" for name, each in rounds.items())
    _say(f"{model.name}: ms a step {said}")
    return Measured(model=model, turns=turns, rounds=rounds, captures=captures, added_ns=added_ns, stores=stores)


def _take_turns(
    rounds: dict[str, list[float]],
    turns: Mapping[str, Turn],
    others: Mapping[str, Child],
    eager: Child,
    number: int,
    steps: int,
) -> None:
    for name in random.Random(number).sample(sorted(rounds), len(rounds)):
        child, turn = (others[name], Turn()) if name in others else (eager, turns[name])
        rounds[name].append(float(median(child.time(turn, steps))))


def _turns(step_ns: float, calls: Mapping[str, int], *, with_threads: bool) -> dict[str, Turn]:
    """Return what is turned, in sizes that matter to a step of this length."""
    turns = {
        BASE: Turn(),
        "linear": Turn(linear_ns=round(0.4 * step_ns / calls["linear"])),
        "layer": Turn(layer_ns=round(0.2 * step_ns / calls["layer"])),
        "step": Turn(step_ns=round(0.7 * step_ns)),
        "wait": Turn(wait_ns=round(0.5 * step_ns)),
        TRACED: Turn(traced=True),
    }
    return turns | ({TWO: Turn(threads=2)} if with_threads else {})


def _typical(captures: Sequence[Path], step_ns: float) -> Path:
    """Return the recording that was slowed down least, made while plain steps took about as long as in the rounds."""

    def oddity(path: Path) -> float:
        with Recording.open(path) as recording:
            info, dilation = recording.info, recording.breakdown.calibration.dilation
        plain_ns = (info.plain_iteration_ns if info else None) or 0
        return float("inf") if dilation is None else abs(plain_ns / step_ns - 1) + abs(dilation - 1)

    return min(captures, key=oddity)


def _replayed(capture: Path, folder: Path) -> tuple[str, str]:
    """Replay the ops of a recording with one thread and with two."""
    stores = []
    for threads in (1, 2):
        store = folder / f"threads-{threads}.sqlite3"
        command = [sys.executable, "-m", "taxbreak_vllm.cli", "replay", str(capture), "--baselines", str(store)]
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, "--runs", "20", "--json"], env=env, check=True, stdout=subprocess.DEVNULL)
        stores.append(str(store))
    return stores[0], stores[1]


def _pairs(found: Measured, everything: Sequence[Measured]) -> Iterator[Pair]:
    """Ask whatif of each change, and put what was measured beside it."""
    base_ns, slower_ns = (_python_ns(found.captures[name]) for name in RECORDED)
    for name in ("linear", "layer", "step", "wait"):
        yield _pair(found, BASE, name, _python(found.added_ns[name], base_ns))
    yield _pair(found, "linear", BASE, _python(-found.added_ns["linear"], slower_ns))
    others = [factor for each in everything if each is not found and (factor := _slowed(each)) is not None]
    if others:
        yield _pair(found, BASE, TRACED, asked(host=[f"python={min(others):.4f}..{max(others):.4f}"]))
    if found.stores is not None:
        with Baselines(Path(found.stores[0])) as one, Baselines(Path(found.stores[1])) as two:
            yield _pair(found, BASE, TWO, asked(like=two), baselines=one)
    if found.model.compiled:
        yield _pair(found, BASE, COMPILED, asked(compiled=True))


def _python(added_ns: int, python_ns: int | None) -> Asked:
    """Return the change in which Python takes so much longer."""
    return asked(host=[f"python={max(1 + added_ns / python_ns, 0):.4f}"] if python_ns else ["python=1"])


def _python_ns(capture: str) -> int | None:
    """Return what Python takes of the plain step; None where whatif does not tell."""
    with Recording.open(capture) as recording:
        step = _step(asked(host=["python=2"]).of(recording))
    if step is None or step.plain_ns is None or step.plain_predicted_ns is None:
        return None
    return max(step.plain_predicted_ns - step.plain_ns, 1)


def _slowed(found: Measured) -> float | None:
    """Return by what factor tracing slowed Python down."""
    capture = found.captures[BASE]
    python_ns = _python_ns(capture)
    with Recording.open(capture) as recording:
        plain_ns = recording.info.plain_iteration_ns if recording.info else None
    if not python_ns or not plain_ns:
        return None
    return max(1 + (found.ratio(BASE, TRACED) - 1) * plain_ns / python_ns, 0)


def _pair(found: Measured, before: str, after: str, change: Asked, *, baselines: Baselines | None = None) -> Pair:
    terms = Terms(baselines=baselines)
    with Recording.open(found.captures[before], terms, with_calls=change.like is not None) as recording:
        answer = change.of(recording)
    step = _step(answer)
    pair = Pair(
        model=found.model.name,
        change=after if before == BASE else f"no {before}",
        asked=change.named,
        step_ms=median(found.rounds[before]) / 1e6,
        measured=found.ratio(before, after),
        refused=answer.refused or answer.no_plain,
    )
    if step is None or step.plain_ns is None:
        return pair
    said = (step.plain_predicted_ns, step.plain_low_ns, step.plain_high_ns)
    predicted, low, high = (None if ns is None else ns / step.plain_ns for ns in said)
    return Pair(**(asdict(pair) | {"predicted": predicted, "low": low, "high": high}))


def _step(answer: WhatIf) -> Prediction | None:
    return answer.steps[0] if answer.steps else None


def _drift(rounds: Sequence[float]) -> float:
    """Return within what share of their median nine of ten rounds of one turn lie."""
    middle = median(rounds)
    off = sorted(abs(each / middle - 1) for each in rounds)
    return off[min(round(0.9 * len(off)), len(off) - 1)]


def _sum_up(pairs: Sequence[Pair]) -> dict[str, float | int | None]:
    errors = [abs(pair.error) for pair in pairs if pair.error is not None]
    inside = [pair.is_inside for pair in pairs if pair.is_inside is not None]
    return {
        "num_pairs": len(errors),
        "median_error": median(errors) if errors else None,
        "wrong_signs": sum(pair.has_wrong_sign for pair in pairs),
        "coverage": sum(inside) / len(inside) if inside else None,
        "refused": sum(pair.refused is not None for pair in pairs),
    }


def _print(pairs: Sequence[Pair], summed: Mapping[str, float | int | None]) -> None:
    console = Console(width=150)
    table = Table("model", "change", "step", "measured", "predicted", "interval", "error", "inside", pad_edge=False)
    for pair in pairs:
        if pair.predicted is None:
            table.add_row(
                pair.model, pair.change, f"{pair.step_ms:.2f} ms", f"{pair.measured:.2f}×", "refused", "", "", ""
            )
            continue
        table.add_row(
            pair.model,
            pair.change,
            f"{pair.step_ms:.2f} ms",
            f"{pair.measured:.2f}×",
            f"{pair.predicted:.2f}×",
            f"{pair.low:.2f} to {pair.high:.2f}",
            f"{pair.error:+.1%}" + (" wrong sign" if pair.has_wrong_sign else ""),
            "yes" if pair.is_inside else "no",
        )
    console.print(table)
    if summed["median_error"] is not None:
        console.print(
            f"{summed['num_pairs']} pairs: median error {summed['median_error']:.1%}, {summed['wrong_signs']} wrong"
            f" signs, intervals hold {summed['coverage']:.0%}; {summed['refused']} refused"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of each turn")
    parser.add_argument("--steps", type=int, default=40, help="decode steps of a round")
    parser.add_argument("--only", nargs="+", choices=[model.name for model in MODELS], help="some models")
    parser.add_argument("--folder", type=Path, help="where what is measured is kept, or is from an earlier run")
    parser.add_argument("--json", type=Path, default=RESULTS)
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
