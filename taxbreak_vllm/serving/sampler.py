"""Which steps to record: one in so many of each phase, and those somebody asks for.

Every rank of a server counts the same steps and so decides alike, without a word between them.
"""

from typing import NamedTuple

from taxbreak_vllm.model import CaptureRequest, Phase

# The first steps of a phase are cold (allocator, kernel selection, lazy compilation): none of them is recorded.
NUM_COLD_STEPS = 15


class Progress:
    """How far one request for steps has come. `started` belongs to the step's thread, the rest to the storing one."""

    __slots__ = ("num_lost", "num_recorded", "num_started", "request")

    def __init__(self, request: CaptureRequest) -> None:
        self.request = request
        self.num_started = 0
        self.num_recorded = 0
        self.num_lost = 0

    def wants(self, phase: Phase) -> bool:
        """Tell whether a step of this phase is asked for; an empty step only by name."""
        if self.num_started - self.num_lost >= self.request.steps:
            return False
        return phase is self.request.phase if self.request.phase is not None else phase is not Phase.IDLE


class Sample(NamedTuple):
    """The decision to record a step; `progress` is that of the request it is recorded for."""

    progress: Progress | None = None

    @property
    def stacks(self) -> bool:
        """Whether Python stacks are recorded too."""
        return self.progress is not None and self.progress.request.stacks

    @property
    def capture_id(self) -> str | None:
        """The request's id."""
        return None if self.progress is None else self.progress.request.capture_id

    def take(self, num_steps: int) -> None:
        """Count a step as begun for the request (1), or as not recorded after all (-1)."""
        if self.progress is not None:
            self.progress.num_started += num_steps


_PERIODIC = Sample()


class Sampler:
    """Counts the steps of each phase and picks those to record."""

    def __init__(self, sample_every: int) -> None:
        self._sample_every = sample_every
        first = min(sample_every, NUM_COLD_STEPS + 1)
        self._due_by_phase = dict.fromkeys(Phase, first)
        self._due_by_phase[Phase.IDLE] = -1
        self._standing: Progress | None = None
        self.progress: Progress | None = None

    def decide(self, phase: Phase) -> Sample | None:
        """Count a step about to run and return how to record it, None for not at all."""
        due = self._due_by_phase[phase] - 1
        self._due_by_phase[phase] = due or self._sample_every
        standing = self._standing
        if standing is not None and standing.wants(phase):
            return Sample(standing)
        return None if due else _PERIODIC

    def follow(self, request: CaptureRequest | None, *, now_unix_ns: int) -> None:
        """Take up the standing request, or none; called by another thread than `decide`.

        A request is followed once: what was recorded for it stays known after it expired or was taken back.
        """
        if request is None or 0 < request.expires_unix_ns <= now_unix_ns:
            self._standing = None
            return
        if self.progress is None or self.progress.request.capture_id != request.capture_id:
            self.progress = Progress(request)
        self._standing = self.progress
