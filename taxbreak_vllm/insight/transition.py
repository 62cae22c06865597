"""The size of batch at which a phase turns from host- to device-bound (SKIP, doi 10.1109/ISPASS64960.2025.00015).

In: recorded steps with the sizes of their batches. Out: a `Transition` a phase. TKLQT per launch is flat while launches
find the device idle, and climbs once they queue up behind its work; HDBI crosses one half where the device's time
passes the host's. Both rise with the batch, so each is fitted by values that never fall before it is read.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import median

from taxbreak_vllm.model.step import GraphMode, Phase
from taxbreak_vllm.model.transition import Sign, SizeBucket, SizedStep, SizeUnit, Transition, Turn

CLIMB = 2.0  # times its floor, from which on TKLQT per launch has climbed
BALANCED = 0.5  # as much device time as orchestration, or half the time waited
MAX_DISSENT_RATIO = 0.25  # of the steps on a side that say the other one

_PROMPTS = frozenset({Phase.PREFILL, Phase.MIXED, Phase.ENCODE})
_WORDS = {SizeUnit.REQUESTS: "request", SizeUnit.PROMPT_TOKENS: "prompt token"}
_MIN_DILATION = 1.05

_Group = tuple[SizeBucket, Sequence[SizedStep]]


def transitions(steps: Iterable[SizedStep]) -> tuple[Transition, ...]:
    """Find the transition of each phase."""
    by_phase: defaultdict[Phase | None, list[SizedStep]] = defaultdict(list)
    for step in steps:
        by_phase[step.phase].append(step)
    phases = (phase for phase in (*Phase, None) if phase in by_phase and phase != Phase.IDLE)
    return tuple(transition(by_phase[phase], phase) for phase in phases)


def transition(steps: Sequence[SizedStep], phase: Phase | None) -> Transition:
    """Find the transition of the steps of one phase; those of the commonest graph mode alone are compared."""
    is_of_prompts = phase in _PROMPTS and any(step.prompt_tokens for step in steps)
    unit = SizeUnit.PROMPT_TOKENS if is_of_prompts else SizeUnit.REQUESTS
    by_mode: defaultdict[GraphMode | None, list[tuple[int, SizedStep]]] = defaultdict(list)
    for step in steps:
        size = step.prompt_tokens if unit is SizeUnit.PROMPT_TOKENS else step.requests
        if size:
            by_mode[step.graph_mode].append((size, step))
    modes = sorted(by_mode, key=lambda mode: -len(by_mode[mode]))
    sized = by_mode[modes[0]] if modes else []
    left_out = Counter({mode: len(by_mode[mode]) for mode in modes[1:]})
    groups = _grouped(sized)
    found = Transition(
        phase=phase,
        unit=unit,
        buckets=tuple(bucket for bucket, _ in groups),
        notes=tuple(_notes(left_out, len(steps) - len(sized) - left_out.total())),
    )
    return replace(found, reason=_why_none(found.buckets, unit)) if len(groups) < 2 else _with_turns(found, groups)


def size_words(size: int, unit: SizeUnit) -> str:
    """Say the size of a batch."""
    return f"{size:,} {_WORDS[unit]}{'' if size == 1 else 's'}"


def _with_turns(found: Transition, groups: Sequence[_Group]) -> Transition:
    turns = {Sign.HDBI: _crossing(groups, found.unit)}
    if any(bucket.tklqt_per_launch_ns is not None for bucket, _ in groups):
        turns = {Sign.TKLQT: _climb(groups, found.unit), **turns}
    for sign, turn in turns.items():
        if turn.between is not None:
            notes = (*found.notes, *_slowed(step for _, steps in groups for step in steps))
            return replace(found, turns=turns, by=sign, between=turn.between, notes=notes)
        if turn.dissent_ratio > MAX_DISSENT_RATIO:  # then the other sign turns by chance
            return replace(found, turns=turns, reason=turn.reason)
    return replace(found, turns=turns, reason="; ".join(turn.reason or "" for turn in turns.values()))


def _grouped(sized: Iterable[tuple[int, SizedStep]]) -> list[_Group]:
    by_edge: defaultdict[int, list[tuple[int, SizedStep]]] = defaultdict(list)
    for size, step in sized:
        by_edge[_edge(size)].append((size, step))
    return [
        (_bucket([size for size, _ in members], [step for _, step in members]), [step for _, step in members])
        for _, members in sorted(by_edge.items())
    ]


def _edge(size: int) -> int:
    """Return the largest size of a size's bucket: from 8 on four for each doubling (10, 12, 14, 16, 20 …)."""
    width = 1 << max(0, (size - 1).bit_length() - 3)
    return -(-size // width) * width


def _bucket(sizes: Sequence[int], steps: Sequence[SizedStep]) -> SizeBucket:
    queued_ns = _median(map(_per_launch, steps))
    return SizeBucket(
        least=min(sizes),
        most=max(sizes),
        num_steps=len(steps),
        window_ns=round(median(step.window_ns for step in steps)),
        tklqt_per_launch_ns=None if queued_ns is None else round(queued_ns),
        hdbi=_median(step.hdbi for step in steps),
        exposed_ratio=_median(_share(step.exposed_ns, step) for step in steps),
        limit_ratio=_median(_share(step.limit_ns, step) for step in steps),
    )


def _per_launch(step: SizedStep) -> float | None:
    return step.tklqt_ns / step.launches if step.tklqt_ns and step.launches else None


def _share(amount_ns: int | None, step: SizedStep) -> float | None:
    return None if amount_ns is None or not step.device_window_ns else amount_ns / step.device_window_ns


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _climb(groups: Sequence[_Group], unit: SizeUnit) -> Turn:
    """Find where TKLQT per launch reaches twice its floor: that of the smallest batch, if that is the host's."""
    found = _said(groups, lambda step: None if (queued_ns := _per_launch(step)) is None else math.log(queued_ns))
    smallest = found[0][0]
    if not _is_hosts(*next(group for group in groups if group[0] is smallest)):
        words = size_words(smallest.least, unit)
        return Turn(reason=f"launches queue up already at {words}, the smallest batch recorded")
    threshold = _rising(found)[0] + math.log(CLIMB)
    return _turn(found, threshold, unit, low="launches do not queue up at {}, the largest batch recorded", high="")


def _is_hosts(bucket: SizeBucket, steps: Iterable[SizedStep]) -> bool:
    """Whether launches take hardly longer than they must, the device waits half the time, or works less than the host.

    Without this twice the TKLQT of a busy device, which grows with its work, would pass for a climb.
    """
    floor_ns = _median(step.floor_ns / step.launches for step in steps if step.floor_ns and step.launches)
    is_quick = floor_ns is not None and (bucket.tklqt_per_launch_ns or 0) <= CLIMB * floor_ns
    is_waiting = bucket.exposed_ratio is not None and bucket.exposed_ratio >= BALANCED
    return is_quick or is_waiting or (bucket.hdbi is not None and bucket.hdbi < BALANCED)


def _crossing(groups: Sequence[_Group], unit: SizeUnit) -> Turn:
    """Find where HDBI crosses one half."""
    found = _said(groups, lambda step: step.hdbi)
    if not found:
        return Turn(reason="no recorded step has an HDBI")
    low = "the host still decides at {}, the largest batch recorded"
    high = "the device decides already at {}, the smallest batch recorded"
    return _turn(found, BALANCED, unit, low=low, high=high)


_Said = tuple[SizeBucket, Sequence[float]]  # a bucket, and a figure of each of its steps


def _said(groups: Iterable[_Group], figure_of: Callable[[SizedStep], float | None]) -> list[_Said]:
    """Return a figure of all steps that have it, bucket by bucket."""
    told = ((bucket, [figure for step in steps if (figure := figure_of(step)) is not None]) for bucket, steps in groups)
    return [(bucket, figures) for bucket, figures in told if figures]


def _turn(found: Sequence[_Said], threshold: float, unit: SizeUnit, *, low: str, high: str) -> Turn:
    """Find the first bucket from which on the fit reaches a threshold; most steps must agree, on each side."""
    fitted = _rising(found)
    at = next((number for number, value in enumerate(fitted) if value >= threshold), len(fitted))
    below = [figure >= threshold for _, figures in found[:at] for figure in figures]
    above = [figure < threshold for _, figures in found[at:] for figure in figures]
    dissent, side = max(
        (sum(wrong) / len(wrong), side) for wrong, side in ((below, "host"), (above, "device")) if wrong
    )
    if dissent > MAX_DISSENT_RATIO:
        differ = f"steps of one size differ more than sizes do: {dissent:.0%} on the {side}'s side say the opposite"
        return Turn(reason=differ, dissent_ratio=dissent)
    if not above:
        return Turn(reason=low.format(size_words(found[-1][0].most, unit)), dissent_ratio=dissent)
    if not below:
        return Turn(reason=high.format(size_words(found[0][0].least, unit)), dissent_ratio=dissent)
    return Turn(between=(found[at - 1][0].most, found[at][0].least), dissent_ratio=dissent)


def _rising(found: Iterable[_Said]) -> list[float]:
    """Fit the medians of buckets by values that never fall: least squares, weighed by steps."""
    blocks: list[tuple[float, int, int]] = []  # mean, steps, buckets
    for _, figures in found:
        mean, num_steps, num = median(figures), len(figures), 1
        while blocks and blocks[-1][0] >= mean:
            before, steps_before, num_before = blocks.pop()
            mean = (before * steps_before + mean * num_steps) / (steps_before + num_steps)
            num_steps, num = num_steps + steps_before, num + num_before
        blocks.append((mean, num_steps, num))
    return [mean for mean, _, num in blocks for _ in range(num)]


def _why_none(buckets: Sequence[SizeBucket], unit: SizeUnit) -> str:
    if not buckets:
        return f"no recorded step tells its {_WORDS[unit]}s"
    (only,) = buckets
    some = "" if only.least == only.most else f"{only.least:,} to "
    return f"only one size of batch was recorded, {some}{size_words(only.most, unit)}"


def _notes(left_out: Counter[GraphMode | None], num_unsized: int) -> Iterable[str]:
    for mode, num in left_out.items():
        yield f"steps in graph mode {mode or 'unknown'} left out, as their launches are others: {num}"
    if num_unsized:
        yield f"steps that do not tell the size of their batch: {num_unsized}"


def _slowed(steps: Iterable[SizedStep]) -> Iterable[str]:
    """Say that recorded steps turn later than plain ones, where recording slowed them."""
    dilation = _median(step.dilation for step in steps)
    if dilation is not None and dilation >= _MIN_DILATION:
        yield (
            f"recording made these steps {dilation:.2f} times as long, most of it the host's part: without it the"
            " device decides from no more than that on"
        )
