"""What a change would win of the steps of one recording: kept with its breakdown, as the recording may go."""

from dataclasses import dataclass
from enum import StrEnum

from taxbreak_vllm.model.step import Phase


class Remedy(StrEnum):
    """A change that advice asks for and a recording may tell of, in the words of `taxbreak whatif`."""

    GRAPH = "--graph full"
    AHEAD = "--async"
    FUSED = "--fuse"
    COMPILED = "--compiled"
    FASTER = "--host python=0.8 --host dispatch=0.8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The steps of one phase in one recording under a change.

    `win_ratio` is the share of a step that is won, between `low_ratio` and `high_ratio`; less than 0 is lost. Where
    they are None `refused` says why. `plain_ns` is the mean of those steps with the profiler's dilation divided out, as
    far as that is known.
    """

    change: Remedy
    phase: Phase | None
    plain_ns: int | None = None
    win_ratio: float | None = None
    low_ratio: float | None = None
    high_ratio: float | None = None
    refused: str | None = None
