"""What `taxbreak whatif` predicts of a vLLM on the CPU, and what that server then takes.

    python benchmarks/whatif_pairs.py [--quick] [--rounds N] [--only MODEL…] [--json FILE] [--folder DIR]

Each model runs in one process that is turned to and fro: a run of a few steps as it is, one with a change, in the order
ABBAABBA, so that what the machine does besides falls on both. Changes: Python that takes longer before each linear
layer, each layer or each step, a wait for another thread in each step, Python functions traced, two threads for one,
the compiled forward for the eager one. A round has recordings of its own, and delays of sizes drawn anew. From a
recording whatif is asked what a step with the change takes, as a ratio to the plain step before.

- A delay is asked as `--host python=F`, F from what whatif says that Python takes of the plain step, and from what the
  delay took by the clock, which on a busy machine is more than it was to take.
- Tracing slows Python by a factor that is known of the other models alone: `--host python=LOW..HIGH` of these.
- Two threads are asked as `--like`: the ops of the recording replayed with two threads, beside replays with one.
- "alike" changes nothing: by so much measuring is off. It is in no sum.

Prints a table and writes it to `benchmarks/results/whatif_pairs.json`; `--quick`, for a busy machine, only prints. A
folder keeps what was measured and recorded: with the same folder again nothing is measured anew, and what is there is
asked about once more.
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
from dataclasses import asdict, dataclass, field, replace
from math import ceil, exp, log, sqrt
from pathlib import Path
from statistics import median

import msgspec
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from turned import MAX_PAIRS, RUN_STEPS, Child, Turn

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.model.whatif import Prediction, WhatIf
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.whatif.asked import Asked, asked
from taxbreak_vllm.whatif.on_host import MISSED

RESULTS = Path(__file__).resolve().parent / "results" / "whatif_pairs.json"
ALIKE, TRACED, TWO, COMPILED = "alike", "traced", "two threads", "compiled"
DELAYS = ("linear", "layer", "step", "wait")
LARGE = 0.1  # a change is large enough to have a sign
_DELAYED = (0.1, 1.5)  # of a step, log-uniform
_RECORDINGS = 3  # of each turn that pairs begin with, a round
_LEAST_PAIRS = 8
_LIKELY = 1.645 * 1.4826 * 1.2533  # of a median absolute deviation by √n: where 90 % of medians lie


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A tiny Llama: what of its configuration is different, how many requests decode together."""

    name: str
    requests: int
    shape: Mapping[str, int] = field(default_factory=dict)
    threads: bool = False
    compiled: bool = False
    quick: bool = False


def _wide(hidden: int, layers: int) -> dict[str, int]:
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 128, "head_dim": 64}
    return {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers, **heads}


MODELS = (
    Model(name="4 layers of 128, 1 request", requests=1, compiled=True, quick=True),
    Model(name="4 layers of 128, 32 requests", requests=32),
    Model(name="12 layers of 128, 4 requests", requests=4, shape={"num_hidden_layers": 12}, compiled=True),
    Model(name="4 layers of 512, 4 requests", requests=4, shape=_wide(512, 4), compiled=True, quick=True),
    Model(name="2 layers of 1024, 8 requests", requests=8, shape=_wide(1024, 2), threads=True),
    Model(name="4 layers of 1024, 1 request", requests=1, shape=_wide(1024, 4), threads=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Runs of a turn beside runs without it: of each pair the median step before and after, and what was added, ns."""

    turn: Turn
    runs: list[tuple[int, int, int]]

    @property
    def ratio(self) -> float:
        """How many times as long a step takes: the median over pairs."""
        return exp(median(self._logs()))

    @property
    def noise(self) -> float:
        """By what share that may be off: half of its 90 % interval, from how the pairs differ."""
        logs = self._logs()
        middle = median(logs)
        return _LIKELY * median(abs(each - middle) for each in logs) / sqrt(len(logs))

    @property
    def before_ns(self) -> float:
        """The median step before."""
        return median(before for before, _, _ in self.runs)

    @property
    def added_ns(self) -> float:
        """What the turn took of a step."""
        return median(added for _, _, added in self.runs)

    def _logs(self) -> list[float]:
        return [log(after / before) for before, after, _ in self.runs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A recording of a step as it is and of one with a delay, and a trial of each turn."""

    base: str
    delayed: str
    trials: dict[str, Trial]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model's rounds; the stores of its replays with one thread and with two."""

    model: Model
    rounds: list[Round]
    stores: tuple[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A change of a model: what was asked, what whatif said, what was measured; ratios to the plain step before.

    `noise` is by what share the measured one may be off.
    """

    model: str
    change: str
    asked: str
    step_ms: float
    measured: float
    noise: float
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    refused: str | None = None

    @property
    def error(self) -> float | None:
        """By how much the prediction is off."""
        return None if self.predicted is None else self.predicted / self.measured - 1

    @property
    def is_inside(self) -> bool | None:
        """Whether the interval holds what was measured."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured <= self.high

    @property
    def is_near(self) -> bool | None:
        """Whether it does, give or take the noise of measuring."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured * (1 + self.noise) and self.measured * (1 - self.noise) <= self.high

    @property
    def missed(self) -> float | None:
        """How far what was measured lies beyond an answer's ranges, as a share of `MISSED`, which widens these."""
        if self.predicted is None or self.low is None or self.high is None:
            return None
        wide = MISSED.ns(1, self.predicted)
        return max(self.measured - (self.high - wide), self.low + wide - self.measured, 0) / wide

    @property
    def has_wrong_sign(self) -> bool:
        """Whether a large change was predicted the wrong way."""
        return (
            self.predicted is not None
            and abs(self.measured - 1) > LARGE
            and (self.predicted - 1) * (self.measured - 1) < 0
        )


def main() -> None:
    """Measure, ask, print, write."""
    options = _options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    load_before, started_s = os.getloadavg()[0], time.monotonic()
    chosen = [model for model in MODELS if model.name in options.only]
    with tempfile.TemporaryDirectory(prefix="wp-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        os.environ["VLLM_CACHE_ROOT"] = str(folder / "vllm")  # what vLLM finds out about a model's class, it does once
        found = [_measured(model, folder / str(MODELS.index(model)), options) for model in chosen]
        pairs = [pair for each in found for pair in _pairs(each, found)]
    summed = _sum_up(pairs)
    if options.json:
        result = {
            "machine": describe_machine("vllm", "torch", "taxbreak-vllm")
            | {"load_1min": {"before": load_before, "after": os.getloadavg()[0]}},
            "took_s": round(time.monotonic() - started_s),
            **summed,
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
    """Run a model's rounds, then replay the ops of its first recording."""
    path = write_tiny_llama(folder / "model")
    config = json.loads((path / "config.json").read_text()) | model.shape
    (path / "config.json").write_text(json.dumps(config))
    _say(f"{model.name}: starting")
    source = random.Random(f"{options.seed} {model.name}")
    with Child(path, folder / "server", requests=model.requests, compiled=model.compiled) as child:
        child.alternate(Turn(), Turn(), MAX_PAIRS)  # the first steps of a server are slow
        rounds = [_round(model, child, source, options.seconds) for _ in range(options.rounds)]
    for each in rounds:
        said = ", ".join(f"{name} {trial.ratio:.3f}" for name, trial in each.trials.items())
        _say(f"{model.name}: {each.trials[ALIKE].before_ns / 1e6:.2f} ms; {said}")
    stores = _replayed(Path(rounds[0].base), folder) if model.threads else None
    return Measured(model=model, rounds=rounds, stores=stores)


def _round(model: Model, child: Child, source: random.Random, seconds: float) -> Round:
    """Record steps, then try each turn, in an order of its own."""
    step_ns = median(before for before, _, _ in child.alternate(Turn(), Turn(), _LEAST_PAIRS))
    turns = _turns(model, step_ns, source)
    base, delayed = (_least_slowed(child.record(turn, _RECORDINGS)) for turn in (Turn(), turns[DELAYS[0]]))
    pairs = max(round(seconds * 1e9 / (2 * RUN_STEPS * step_ns)), _LEAST_PAIRS)
    trials = {}
    for name in source.sample(sorted(turns), len(turns)):
        runs: list[tuple[int, int, int]] = []
        while len(runs) < pairs:
            runs += child.alternate(Turn(), turns[name], min(pairs - len(runs), MAX_PAIRS))
        trials[name] = Trial(turn=turns[name], runs=runs)
    return Round(base=base, delayed=delayed, trials=trials)


def _turns(model: Model, step_ns: float, source: random.Random) -> dict[str, Turn]:
    """Return what is turned, delays in sizes that matter to a step of this length."""

    def delay_ns(times: int) -> int:
        return round(step_ns / times * exp(source.uniform(*map(log, _DELAYED))))

    layers = int(model.shape.get("num_hidden_layers", 4))
    turns = {
        ALIKE: Turn(),
        "linear": Turn(linear_ns=delay_ns(4 * layers)),
        "layer": Turn(layer_ns=delay_ns(layers)),
        "step": Turn(step_ns=delay_ns(1)),
        "wait": Turn(wait_ns=delay_ns(1)),
        TRACED: Turn(traced=True),
    }
    turns |= {TWO: Turn(threads=2)} if model.threads else {}
    return turns | ({COMPILED: Turn(compiled=True)} if model.compiled else {})


def _least_slowed(captures: Sequence[Path]) -> str:
    """Return the recording that took least longer than plain steps, or least less."""

    def oddity(path: Path) -> float:
        with Recording.open(path) as recording:
            dilation = recording.breakdown.calibration.dilation
        return float("inf") if dilation is None else abs(dilation - 1)

    return str(min(captures, key=oddity))


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
    traced = [factor for each in everything if each is not found for factor in _slowed(each)]
    for each in found.rounds:
        base_ns, delayed_ns = _python_ns(each.base), _python_ns(each.delayed)
        for name in (ALIKE, *DELAYS):
            yield _pair(found, each, name, _python(each.trials[name].added_ns, base_ns))
        yield _pair(found, each, DELAYS[0], _python(-each.trials[DELAYS[0]].added_ns, delayed_ns), is_back=True)
        if traced:
            yield _pair(found, each, TRACED, asked(host=[f"python={min(traced):.4f}..{max(traced):.4f}"]))
        if found.stores is not None:
            with Baselines(Path(found.stores[0])) as one, Baselines(Path(found.stores[1])) as two:
                yield _pair(found, each, TWO, asked(like=two), baselines=one)
        if found.model.compiled:
            yield _pair(found, each, COMPILED, asked(compiled=True))


def _python(added_ns: float, python_ns: int | None) -> Asked:
    """Return the change in which Python takes so much longer."""
    return asked(host=[f"python={max(1 + added_ns / python_ns, 0):.4f}"] if python_ns else ["python=1"])


def _python_ns(capture: str) -> int | None:
    """Return what Python takes of the plain step; None where whatif does not tell."""
    with Recording.open(capture) as recording:
        step = _step(asked(host=["python=2"]).of(recording))
    if step is None or step.plain_ns is None or step.plain_predicted_ns is None:
        return None
    return max(step.plain_predicted_ns - step.plain_ns, 1)


def _slowed(found: Measured) -> Iterator[float]:
    """Return by what factor tracing slowed Python down, of each round."""
    for each in found.rounds:
        python_ns = _python_ns(each.base)
        with Recording.open(each.base) as recording:
            plain_ns = recording.info.plain_iteration_ns if recording.info else None
        if python_ns and plain_ns:
            yield max(1 + (each.trials[TRACED].ratio - 1) * plain_ns / python_ns, 0)


def _pair(
    found: Measured,
    each: Round,
    name: str,
    change: Asked,
    *,
    is_back: bool = False,
    baselines: Baselines | None = None,
) -> Pair:
    """Ask of a turn, or with `is_back` of its end, which begins with the recording of a delayed step."""
    trial = each.trials[name]
    with Recording.open(
        each.delayed if is_back else each.base, Terms(baselines=baselines), with_calls=change.like is not None
    ) as recording:
        answer = change.of(recording)
    step = _step(answer)
    pair = Pair(
        model=found.model.name,
        change=f"no {name}" if is_back else name,
        asked=change.named,
        step_ms=trial.before_ns * (trial.ratio if is_back else 1) / 1e6,
        measured=1 / trial.ratio if is_back else trial.ratio,
        noise=trial.noise,
        refused=answer.refused or answer.no_plain,
    )
    if step is None or step.plain_ns is None:
        return pair
    said = (step.plain_predicted_ns, step.plain_low_ns, step.plain_high_ns)
    predicted, low, high = (None if ns is None else ns / step.plain_ns for ns in said)
    return replace(pair, predicted=predicted, low=low, high=high)


def _step(answer: WhatIf) -> Prediction | None:
    return answer.steps[0] if answer.steps else None


def _sum_up(pairs: Sequence[Pair]) -> dict[str, float | int | None]:
    alike = [abs(pair.measured - 1) for pair in pairs if pair.change == ALIKE]
    pairs = [pair for pair in pairs if pair.change != ALIKE]
    errors = [abs(pair.error) for pair in pairs if pair.error is not None]
    near = [pair.is_near for pair in pairs if pair.is_near is not None]
    missed = [pair.missed for pair in pairs if pair.missed is not None]
    inside = [pair.is_inside for pair in pairs if pair.is_inside is not None]
    return {
        "num_pairs": len(errors),
        "median_error": median(errors) if errors else None,
        "wrong_signs": sum(pair.has_wrong_sign for pair in pairs),
        "coverage": sum(inside) / len(inside) if inside else None,
        "coverage_but_for_noise": sum(near) / len(near) if near else None,
        "missed_by_nine_of_ten": _of_nine_in_ten(missed) if missed else None,
        "held_out": _held_out(pairs),
        "refused": sum(pair.refused is not None for pair in pairs),
        "alike_median": median(alike),
        "alike_most": max(alike),
    }


def _of_nine_in_ten(missed: Sequence[float]) -> float:
    return sorted(missed)[max(ceil(0.9 * len(missed)) - 1, 0)]


def _held_out(pairs: Sequence[Pair]) -> float | None:
    """Tell which share of answers missed by no more than nine of ten did of the other models."""
    missed = [(pair.model, pair.missed) for pair in pairs if pair.missed is not None]
    found = []
    for model in {model for model, _ in missed}:
        if others := [by for of, by in missed if of != model]:
            found += [by <= _of_nine_in_ten(others) for of, by in missed if of == model]
    return sum(found) / len(found) if found else None


def _print(pairs: Sequence[Pair], summed: Mapping[str, float | int | None]) -> None:
    console = Console(width=150)
    table = Table("model", "change", "step", "measured", "predicted", "interval", "error", "inside", pad_edge=False)
    for pair in pairs:
        measured = f"{pair.measured:.3f}× ±{pair.noise:.1%}"
        if pair.predicted is None:
            table.add_row(pair.model, pair.change, f"{pair.step_ms:.2f} ms", measured, "refused", "", "", "")
            continue
        table.add_row(
            pair.model,
            pair.change,
            f"{pair.step_ms:.2f} ms",
            measured,
            f"{pair.predicted:.3f}×",
            f"{pair.low:.2f} to {pair.high:.2f}",
            f"{pair.error:+.1%}" + (" wrong sign" if pair.has_wrong_sign else ""),
            "yes" if pair.is_inside else "no",
        )
    console.print(table)
    if summed["median_error"] is not None:
        console.print(
            f"{summed['num_pairs']} pairs: median error {summed['median_error']:.1%}, {summed['wrong_signs']} wrong"
            f" signs, {summed['refused']} refused. Intervals hold {summed['coverage']:.0%}, but for the noise of"
            f" measuring {summed['coverage_but_for_noise']:.0%}; nine of ten answers missed by at most"
            f" {summed['missed_by_nine_of_ten']:.2f} times what widens them. Alike: off by"
            f" {summed['alike_median']:.1%}, by {summed['alike_most']:.1%} at most"
        )
    if summed["held_out"] is not None:
        console.print(f"What nine of ten of the other models' answers missed by would hold {summed['held_out']:.0%}.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two models, one short round; nothing is written")
    parser.add_argument("--rounds", type=int, help="of each model (2)")
    parser.add_argument("--seconds", type=float, help="of plain steps, were all such, for each turn (3)")
    parser.add_argument("--seed", type=int, default=0, help="of sizes and orders")
    parser.add_argument("--only", nargs="+", choices=[model.name for model in MODELS], help="some models")
    parser.add_argument("--folder", type=Path, help="where what is measured is kept, or is from an earlier run")
    parser.add_argument("--json", type=Path, help=f"where to write ({RESULTS.name} of the results)")
    options = parser.parse_args()
    options.only = options.only or [model.name for model in MODELS if model.quick or not options.quick]
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.seconds = options.seconds or (1.0 if options.quick else 3.0)
    options.json = options.json or (None if options.quick else RESULTS)
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
