"""What a simulation of a server's traffic tells."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from taxbreak_vllm.model.step import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first step that was batched otherwise: what was recorded and what the simulation chose."""

    step: Int64
    recorded: Mapping[str, Int64]
    simulated: Mapping[str, Int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Of one engine's recorded steps, `num_same` of `num_steps` were batched alike, up to the first that was not.

    `num_warming` steps came before those that count, where the oldest of the recording is gone. `ended_early` says what
    ended the comparison before the end of the recording.
    """

    engine: str
    vllm: str
    is_whole: bool
    has_hashes: bool
    num_steps: Int64
    num_same: Int64
    num_warming: Int64
    num_requests: Int64
    num_hit_tokens: Int64
    num_preemptions: Int64
    first_difference: Difference | None = None
    ended_early: str | None = None
    elapsed_ns: Int64 = 0

    @property
    def is_identical(self) -> bool:
        """Whether all steps to the end of the recording were batched alike, and there were any."""
        return 0 < self.num_steps == self.num_same and self.first_difference is None and self.ended_early is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """`taxbreak workload check`; `taxbreak.workload-check/1`."""

    engines: tuple[Identity, ...]
    schema: str = "taxbreak.workload-check/1"

    def to_json(self) -> bytes:
        """Encode as one JSON object."""
        return msgspec.json.encode(self)
