"""What the live page shows of a whole server: the second of each device, requests as waterfalls, the first sentence.

In: answers of `insight`. Out: views, in which a part is (class of colour, words, ns). No figure is computed here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from taxbreak_vllm.model.engine import Between, EnginePart, EngineState
from taxbreak_vllm.model.frontend import Stage, Waterfall
from taxbreak_vllm.model.server import DevicePart, DeviceSecond, StepPart, TypicalRequest

Part = tuple[str, str, int]
P = TypeVar("P")

DEVICE_WORDS: Mapping[DevicePart, tuple[str, str]] = {
    Between.NO_WORK: ("no-work", "no request"),
    Between.FRONTEND: ("frontend", "a request is in the API server"),
    Between.IPC_INPUT: ("ipc", "a request is on its way to the engine"),
    EnginePart.INPUT: ("e-input", "engine: input"),
    EnginePart.SCHEDULE: ("e-schedule", "engine: schedule"),
    EnginePart.GRAMMAR: ("e-grammar", "engine: grammar"),
    EnginePart.DISPATCH: ("e-dispatch", "engine: dispatch"),
    EnginePart.UPDATE: ("e-update", "engine: update"),
    EnginePart.POST: ("e-post", "engine: outputs"),
    EnginePart.LOOP: ("host", "not explained"),
    Between.IPC_DISPATCH: ("ipc-dispatch", "call on its way to the worker"),
    Between.IPC_RETURN: ("ipc-return", "result on its way to the engine"),
    StepPart.STEP: ("engine", "the worker's step, not recorded yet"),
    StepPart.DELTA_FT: ("python", "worker: Python, op dispatch (ΔFT)"),
    StepPart.DELTA_CT: ("library", "worker: vendor library (ΔCT)"),
    StepPart.DELTA_KT: ("launch", "worker: launch calls (ΔKT)"),
    StepPart.CALLS: ("runtime", "worker: other runtime calls"),
    StepPart.BLOCKED: ("blocked", "worker: blocked"),
    StepPart.LAUNCHED: ("queue", "launched, not begun"),
    StepPart.ACTIVE: ("active", "the device works"),
}
_STAGES: Mapping[Stage, tuple[str, str]] = {
    Stage.RECEIVE: ("s-receive", "receive"),
    Stage.PARSE: ("s-parse", "parse"),
    Stage.RENDER: ("s-render", "render: template, tokenizer"),
    Stage.SUBMIT: ("s-submit", "submit"),
    Stage.IPC_INPUT: ("ipc", "to the engine"),
    Stage.QUEUE: ("queue", "queue"),
    Stage.QUEUE_KV: ("blocked", "queue: KV blocks"),
    Stage.QUEUE_ENCODER: ("library", "queue: encoder"),
    Stage.QUEUE_GRAMMAR: ("python", "queue: grammar"),
    Stage.QUEUE_REMOTE_KV: ("runtime", "queue: remote KV cache"),
    Stage.PREFILL: ("active", "prefill"),
    Stage.DECODE: ("other_active", "decode"),
    Stage.IPC_OUTPUT: ("ipc-return", "from the engine"),
    Stage.DETOKENIZE: ("s-detokenize", "detokenize"),
    Stage.SERIALIZE: ("s-serialize", "serialize"),
    Stage.SEND: ("s-send", "send"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondView:
    """What the iterations of one engine went to; without parts it is not known what its device waited for."""

    engine: str
    model_name: str
    num_iterations: int
    num_left_out: int
    working_ns: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestView:
    """One request, or the median or mean of many, stage by stage."""

    name: str
    tokens: str
    parts: tuple[Part, ...]
    ttft_ns: int
    total_ns: int

    @property
    def length_ns(self) -> int:
        """Return how long its bar is: medians of stages do not sum to the median of the whole."""
        return sum(part_ns for _, _, part_ns in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsView:
    """A typical request, where there are enough to tell, and slow ones; `reason` says why there is none."""

    rows: tuple[RequestView, ...]
    reason: str = ""

    @property
    def longest_ns(self) -> int:
        """Return what all bars are drawn to the scale of."""
        return max((max(row.length_ns, row.ttft_ns) for row in self.rows), default=0)


def second_view(state: EngineState, second: DeviceSecond | None) -> SecondView:
    """Show an engine's iterations."""
    return SecondView(
        engine=state.engine,
        model_name=state.model_name,
        num_iterations=state.num_iterations,
        num_left_out=state.num_left_out,
        working_ns=0 if second is None else second.working_ns,
        parts=() if second is None else _parts(second.parts_ns, with_unknown(DEVICE_WORDS, second.parts_ns)),
    )


def requests_view(request: TypicalRequest | None, slow: Iterable[Waterfall], reason: str) -> RequestsView:
    """Show a typical request, if any, and slow ones."""
    slow = list(slow)
    told = [each.stages_ns for each in (*slow, request) if each is not None]
    words = with_unknown(_STAGES, *told)
    rows = tuple(_request_view(waterfall, words) for waterfall in slow)
    if request is not None:
        median = RequestView(
            name="median" if request.is_median else "mean",
            tokens=f"of {request.num:,}",
            parts=_parts(request.stages_ns, words),
            ttft_ns=request.ttft_ns,
            total_ns=request.total_ns,
        )
        rows = (median, *rows)
    return RequestsView(rows=rows, reason=reason)


def legend_of(bars: Iterable[Sequence[Part]]) -> tuple[tuple[str, str], ...]:
    """Return the colours and words of all parts that are seen, each once and in the order of the bars' parts."""
    seen = dict.fromkeys((css, words) for bar in bars for css, words, part_ns in bar if part_ns)
    known = (*DEVICE_WORDS.values(), *_STAGES.values())
    return (*(pair for pair in known if pair in seen), *(pair for pair in seen if pair not in known))


def _request_view(waterfall: Waterfall, words: Mapping[Stage, tuple[str, str]]) -> RequestView:
    whole = "" if waterfall.is_streamed else ", not streamed"
    return RequestView(
        name=f"{waterfall.number & 0xFFFFFFFF:08x}",
        tokens=f"{waterfall.num_prompt_tokens:,} + {waterfall.num_output_tokens:,}{whole}",
        parts=_parts(waterfall.stages_ns, words),
        ttft_ns=waterfall.ttft_ns,
        total_ns=waterfall.total_ns,
    )


def with_unknown(words: Mapping[P, tuple[str, str]], *told: Iterable[P]) -> dict[P, tuple[str, str]]:
    """Add what only another version's servers tell of, by the names they give."""
    unknown = {part: ("host", f"{part}, not known here") for part in chain.from_iterable(told) if part not in words}
    return {**words, **unknown}


def _parts(spent_ns: Mapping[P, int], words: Mapping[P, tuple[str, str]]) -> tuple[Part, ...]:
    return tuple((*words[part], max(0, spent_ns.get(part, 0))) for part in words)
