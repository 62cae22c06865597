"""Steps against the sizes of their batches, and the size from which on the device, not the host, decides (SKIP)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.model.step import GraphMode, Phase


class SizeUnit(StrEnum):
    """What the size of a batch is counted in: requests, or in phases that work on prompts, the tokens of these."""

    REQUESTS = "requests"
    PROMPT_TOKENS = "prompt_tokens"


class Sign(StrEnum):
    """What tells that the device decides: launches that queue up, or more device time than orchestration time."""

    TKLQT = "tklqt"
    HDBI = "hdbi"


class SizedStep(NamedTuple):
    """What of a recorded step the transition is read from; `exposed_ns` and `limit_ns` are of `device_window_ns`.

    `floor_ns` is what its launches cost at the least (ΔKT). A tuple, as a scrape makes thousands.
    """

    phase: Phase | None = None
    graph_mode: GraphMode | None = None
    requests: int | None = None
    prompt_tokens: int | None = None
    window_ns: int = 0
    device_window_ns: int = 0
    launches: int | None = None
    tklqt_ns: int | None = None
    floor_ns: int | None = None
    hdbi: float | None = None
    exposed_ns: int | None = None
    limit_ns: int | None = None
    dilation: float | None = None

    @classmethod
    def of(cls, step: StepBreakdown, *, dilation: float | None = None, requests: int | None = None) -> "SizedStep":
        """Take it from a breakdown; `requests` is the size of the batch where the recording is not asked for it."""
        return cls(
            phase=step.phase,
            graph_mode=step.graph_mode,
            requests=step.batch.requests if requests is None else requests,
            prompt_tokens=step.batch.prompt_tokens if requests is None else None,
            window_ns=step.window_ns,
            device_window_ns=step.device.window_ns,
            launches=step.launches,
            tklqt_ns=step.tklqt_ns,
            floor_ns=step.taxes.delta_kt_ns,
            hdbi=step.hdbi,
            exposed_ns=step.device.idle.host_ns,
            limit_ns=None if step.limit is None else step.limit.bar.limit_ns or None,
            dilation=dilation,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBucket:
    """The recorded steps with batches from `least` to `most`: medians, None where no step tells.

    `exposed_ratio` is the share of the time that the device waits for the host, `limit_ratio` what hardware asks for.
    """

    least: int
    most: int
    num_steps: int
    window_ns: int
    tklqt_per_launch_ns: int | None = None
    hdbi: float | None = None
    exposed_ratio: float | None = None
    limit_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where one sign turns: `between` the largest batch that is the host's and the smallest that is the device's.

    Where it turns nowhere that is None, and `reason` says why. `dissent_ratio` is the share of steps that say the other
    side than the one their batch is on, of the side with more of them.
    """

    between: tuple[int, int] | None = None
    reason: str | None = None
    dissent_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One phase against the size of its batches. Up to `between[0]` the host decides, from `between[1]` on the device.

    It is where TKLQT per launch climbs, else where HDBI crosses one half: `by` says which, `turns` has both. None where
    the load did not cross it, or its steps do not agree, and `reason` says so.
    """

    phase: Phase | None
    unit: SizeUnit
    buckets: tuple[SizeBucket, ...] = ()
    between: tuple[int, int] | None = None
    by: Sign | None = None
    reason: str | None = None
    turns: Mapping[Sign, Turn] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitions:
    """The transition of each phase that was recorded; `reason` says why there is none at all."""

    transitions: tuple[Transition, ...] = ()
    model_name: str = ""
    server_id: str = ""
    reason: str | None = None

    def to_builtins(self) -> dict[str, Any]:
        """Return the JSON object as dicts, lists and numbers."""
        tree: dict[str, Any] = msgspec.to_builtins(self, str_keys=True)
        return tree

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)
