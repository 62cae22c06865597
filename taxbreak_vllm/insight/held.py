"""Whether a change held: the plain steps of a server before and after a restart with other settings, compared.

In: what the two starts of a server are known by, and the advice given before. Out: `Outcome`s. A phase's steps are
compared in the size of batch that both served most, as the load may have changed too; where the change lets steps carry
more, by what a token takes; a change around the steps is judged by the part it is about (`server_held`). The interval
is that of the ratio of two medians, each by order statistics at 97.5 %, so that nothing is assumed of how durations are
spread. A verdict must hold with and without what the workers' waits for a CPU explain.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import NamedTuple

from taxbreak_vllm.insight.evidence import Evidence
from taxbreak_vllm.insight.plain import WORTH_RATIO
from taxbreak_vllm.insight.server_evidence import PARTS, ServerEvidence
from taxbreak_vllm.insight.server_held import part_outcome
from taxbreak_vllm.model.advice import Advice, Held, Outcome, Per
from taxbreak_vllm.model.step import Phase

_GRAPHS = ("cudagraph_mode", "max_cudagraph_capture_size", "enforce_eager")
_COMPILED = ("compilation_mode", "enforce_eager")
ASKED: Mapping[str, tuple[str, ...]] = {  # the settings that a rule's change is made by
    "cuda-graphs": _GRAPHS,
    "full-graphs": _GRAPHS,
    "capture-sizes": _GRAPHS,
    "compilation": _COMPILED,
    "fused-kernels": _COMPILED,
    "library-front-end": ("linear_backend", *_GRAPHS),
    "async-scheduling": ("async_scheduling",),
    "work-ahead": ("async_scheduling",),
    "engine-loop": ("async_scheduling", "api_server_count"),
    "api-servers": ("api_server_count", "renderer_num_workers"),
    "before-the-engine": ("api_server_count", "renderer_num_workers"),
    "delivery": ("stream_interval", "api_server_count"),
    "one-process": ("distributed_executor_backend",),
    "batch-size": ("max_num_seqs",),
    "larger-batch": ("max_num_seqs",),
    "queue": ("max_num_seqs", "max_num_batched_tokens"),
    "prefill-budget": ("max_num_batched_tokens", "enable_chunked_prefill"),
    "quantization": ("quantization", "cache_dtype", "attention_backend"),
}


class Measure(NamedTuple):
    """What is compared: a step, of one size, or one of the tokens that a step carries."""

    word: str
    per: Per


STEP = Measure("step", Per.STEP)
_OUTPUT, _PROMPT = Measure("output token", Per.TOKEN), Measure("prompt token", Per.TOKEN)
_MEASURES = {"batch-size": _OUTPUT, "larger-batch": _OUTPUT, "prefill-budget": _PROMPT}

_TAIL = 0.025  # of each median's interval, both ends together
MIN_STEPS = 7  # on each side, for such an interval
_MAX_WAIT = 0.99


class PlainStep(NamedTuple):
    """How long plain steps like a recorded one take, and how many tokens it carried."""

    plain_ns: int
    output_tokens: int
    prompt_tokens: int = 0

    @property
    def size(self) -> int:
        """Return its size as the sampler sees it, a power of two."""
        return (self.output_tokens + self.prompt_tokens).bit_length()


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a server: its settings, the plain steps of each phase that its recordings were compared with, and
    what its engines and API servers tell of the time around them.
    """

    settings: Mapping[str, str]
    steps: Mapping[Phase | None, Sequence[PlainStep]]
    around: Sequence[ServerEvidence] = ()

    @classmethod
    def of(cls, settings: Mapping[str, str], found: Iterable[Evidence], around: Sequence[ServerEvidence] = ()) -> "Run":
        """Take the plain steps from the evidence of a run."""
        steps = {
            e.phase: [
                PlainStep(plain.step_ns, step.batch.output_tokens or 0, step.batch.prompt_tokens or 0)
                for plain, step in zip(e.plain, e.steps, strict=True)
            ]
            for e in found
        }
        return cls(settings, steps, around)

    @property
    def cpu_wait_ratio(self) -> float:
        """Return how much of the time in which a worker wanted a CPU it waited for one, 0 where that is not known."""
        workers = (worker for evidence in self.around for worker in evidence.workers)
        return max((worker.runqueue_wait_ratio or 0.0 for worker in workers), default=0.0)


def outcomes(advice: Sequence[Advice], before: Run, after: Run) -> tuple[Outcome, ...]:
    """Say of each change that was made whether it held; one that nobody advised is measured too."""
    names = before.settings.keys() & after.settings.keys()
    changed = {
        name: (before.settings[name], after.settings[name])
        for name in sorted(names)
        if before.settings[name] != after.settings[name]
    }
    if not changed:
        return ()
    made = [one for one in advice if set(ASKED.get(one.rule, ())) & changed.keys()]
    asked: defaultdict[tuple[Measure, Phase | None], list[Advice]] = defaultdict(list)
    for one in made:
        if one.rule not in PARTS:
            asked[_MEASURES.get(one.rule, STEP), _phase(one, before, after)].append(one)
    if not made:
        asked[STEP, _phase(None, before, after)] = []
    return (
        *(_outcome(measure, phase, own, changed, before, after) for (measure, phase), own in asked.items()),
        *(part_outcome(one, changed, before.around, after.around) for one in made if one.rule in PARTS),
    )


def _phase(advice: Advice | None, before: Run, after: Run) -> Phase | None:
    """Choose the phase to compare: that of the advice which is served most, else the one recorded most."""
    if advice is not None and advice.phases:
        return max(advice.phases, key=lambda part: part.serving_ratio or 0.0).phase
    known = before.steps.keys() & after.steps.keys()
    return max(known, key=lambda phase: min(len(before.steps[phase]), len(after.steps[phase])), default=None)


def _outcome(
    measure: Measure,
    phase: Phase | None,
    advice: Sequence[Advice],
    changed: Mapping[str, tuple[str, str]],
    before: Run,
    after: Run,
) -> Outcome:
    size, a, b = _comparable(before.steps.get(phase, ()), after.steps.get(phase, ()), measure)
    change = median(b) / median(a) if a and b else None
    interval = _interval(a, b)
    waits = before.cpu_wait_ratio, after.cpu_wait_ratio
    held = _held(interval)
    if held is not _held(_without(waits, interval)):
        held = Held.NOT_ENOUGH_YET
    promised = max((part.at_most_ratio for one in advice for part in one.phases if part.phase is phase), default=None)
    settings = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
    measured = "nothing comparable was recorded on both sides; it takes the load that there was before"
    if change is not None:
        within = f"{MIN_STEPS} on each side tell how surely"
        if interval is not None:
            within = f"{interval[0]:.2f} to {interval[1]:.2f} with 95 %"
        steps = f"{len(a)} and {len(b)} steps{size}"
        measured = f"{phase or 'such'} {measure.word}s take {change:.2f}× the time they took ({within}), from {steps}"
    if max(waits) >= WORTH_RATIO:
        measured += f"; a worker waited for a CPU {waits[0]:.0%} of the time before and {waits[1]:.0%} after"
    bound = "" if promised is None else f"; the bound was {promised:.0%} less"
    return Outcome(
        held=held,
        rules=tuple(one.rule for one in advice),
        settings=changed,
        per=measure.per,
        phase=phase,
        change=change,
        interval=interval,
        promised_ratio=promised,
        num_before=len(a),
        num_after=len(b),
        words=f"{settings}: {measured}{bound}",
    )


def _held(interval: tuple[float, float] | None) -> Held:
    """It held if steps are shorter for sure, it did not if they are not shorter by what is worth acting on for sure."""
    if interval is None:
        return Held.NOT_ENOUGH_YET
    if interval[1] < 1:
        return Held.HELD
    return Held.DID_NOT_HOLD if interval[0] > 1 - WORTH_RATIO else Held.NOT_ENOUGH_YET


def _without(waits: tuple[float, float], interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """Take off an interval what the waits for a CPU explain, which tell of the machine and not of the change."""
    old, new = (1 - min(wait, _MAX_WAIT) for wait in waits)
    return None if interval is None else (interval[0] * new / old, interval[1] * new / old)


def _comparable(
    a: Sequence[PlainStep], b: Sequence[PlainStep], measure: Measure
) -> tuple[str, list[float], list[float]]:
    """Return the durations to compare on each side, and of which size of batch they are, in words."""
    if measure is not STEP:
        old, new = ([step.plain_ns / num for step in run if (num := _tokens(step, measure))] for run in (a, b))
        return "", old, new
    of_size = {
        size: [[float(step.plain_ns) for step in run if step.size == size] for run in (a, b)]
        for size in sorted({step.size for step in a} & {step.size for step in b})
    }
    if not of_size:
        return "", [], []
    size = max(of_size, key=lambda size: min(map(len, of_size[size])))
    old, new = of_size[size]
    return _carrying(size), old, new


def _carrying(size: int) -> str:
    """Say what steps of a size carry, where that was told."""
    if not size:
        return ""
    return " of one token" if size == 1 else f" of {2 ** (size - 1)} to {2**size - 1} tokens"


def _tokens(step: PlainStep, measure: Measure) -> int:
    return step.prompt_tokens if measure is _PROMPT else step.output_tokens


def _interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    old, new = median_interval(a), median_interval(b)
    return None if old is None or new is None else (new[0] / old[1], new[1] / old[0])


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return two of the values that hold the median with 97.5 %; None for fewer than seven."""
    ordered, num = sorted(values), len(values)
    cut, below = 0, 0.0
    while 2 * (below + comb(num, cut) / 2**num) <= _TAIL:
        below += comb(num, cut) / 2**num
        cut += 1
    return (ordered[cut - 1], ordered[num - cut]) if cut else None
