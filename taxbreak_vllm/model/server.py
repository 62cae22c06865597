"""A whole server, client to kernel: what a second of its device went to, its balance, what to know of it first.

These are answers about what workers, engines and API servers publish, worked out of it by `taxes` and `insight`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.frontend import Stage
from taxbreak_vllm.model.step import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBalance:
    """The recorded steps of one phase that have an HDBI: how many, and the sums that it is made of."""

    num_steps: int
    active_ns: int
    orchestration_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HdbiServer:
    """HDBI whose orchestration also holds what the device waits for outside its worker, per phase and in total.

    That is exposed time of the engine's thread, of messages between processes and of the API server. `reasons` say, by
    phase or for the "total", why a figure is None. The total weighs phases as the engine ran them, not as they were
    recorded.
    """

    total: float | None = None
    phases: Mapping[Phase, float | None] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


class StepPart(StrEnum):
    """What the device's time within a worker's step went to; `step` is a step of a phase that was not recorded yet."""

    STEP = "step"
    DELTA_FT = "delta_ft"
    DELTA_CT = "delta_ct"
    DELTA_KT = "delta_kt"
    CALLS = "calls"  # other runtime calls
    BLOCKED = "blocked"
    LAUNCHED = "launched"  # waits for what is launched already
    ACTIVE = "active"


DevicePart = EnginePart | Between | StepPart

DEVICE_PARTS: tuple[DevicePart, ...] = (  # from client to kernel
    *(Between.NO_WORK, Between.FRONTEND, Between.IPC_INPUT),
    *EnginePart,
    *(Between.IPC_RETURN, Between.IPC_DISPATCH),
    *StepPart,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSecond:
    """What the iterations of one engine went to since its start: `parts_ns`, from client to kernel, sum to them.

    They stand for `num_left_out` others, about which its device was not asked.
    """

    engine: str
    model_name: str
    num_iterations: int
    num_left_out: int = 0
    parts_ns: Mapping[DevicePart, int]

    @property
    def total_ns(self) -> int:
        """All of it."""
        return sum(self.parts_ns.values())

    @property
    def working_ns(self) -> int:
        """Times without a request aside."""
        return self.total_ns - self.parts_ns.get(Between.NO_WORK, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalRequest:
    """Medians over `num` requests, those of the stages not summing to that of the whole, or else means of all.

    `first_token_ns` is the time to the first byte or, of an answer that is not streamed, all time but that of decoding.
    """

    num: int
    is_median: bool
    stages_ns: Mapping[Stage, int]
    ttft_ns: int
    first_token_ns: int
    total_ns: int


class Concern(StrEnum):
    """What a server loses most time to."""

    FRONTEND = "frontend"  # a stage of requests in the API server
    ENGINE = "engine"  # the engine's loop, and messages to and from its workers
    HOST = "host"  # the worker's own host work within steps
    NO_WORK = "no_work"
    QUEUE = "queue"  # requests wait for a place in a step, and none of the above is why
    DEVICE = "device"  # nothing: the device works
    NOTHING = "nothing"  # nothing stands out
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """What an operator should know first: `part` of it takes `lost_ns` of `of_ns`, the whole concern `ratio` of that.

    Times are those of a median request (`frontend` with a stage, `queue`) or of a mean iteration. `engine` is named
    where there are several. `reason` says why nothing is known.
    """

    concern: Concern
    part: Stage | DevicePart | None = None
    lost_ns: int = 0
    of_ns: int = 0
    ratio: float = 0.0
    engine: str = ""
    reason: str = ""
