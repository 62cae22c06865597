"""Whether steps are recorded, how many, and within which budget: settings, then what somebody says at run time.

The settings of the environment hold until a control message comes; what a message leaves out stays as they say it.
The thread of the steps asks, the storing thread tells.
"""

from collections.abc import Callable, Iterable

from pydantic import ValidationError

from taxbreak_vllm.model.worker import DISABLED, OVERHEAD, REVOCABLE, CaptureRequest, Control
from taxbreak_vllm.serving.drops import Drops, logger
from taxbreak_vllm.serving.sampling.budget import Budget
from taxbreak_vllm.serving.sampling.kinds import StepKind
from taxbreak_vllm.serving.sampling.sampler import Draws, Sample, Sampler
from taxbreak_vllm.serving.sampling.stalls import Detail, Stalls
from taxbreak_vllm.settings import Settings

LOCKSTEP = "lockstep"


class Policy:
    """The rules in force. `adapts` is False on a rank that only times: it has no overhead and picks at full rate.

    An `off_reason` given at the start stays, whatever is said later.
    """

    def __init__(
        self,
        settings: Settings,
        kinds: Iterable[StepKind],
        drops: Drops,
        *,
        seed: str,
        adapts: bool,
        off_reason: str | None = None,
        looks_ahead: bool = False,
        now_ns: Callable[[], int],
        draw: Callable[[str, int], Draws],
    ) -> None:
        self._settings = settings
        self._drops = drops
        self._adapts = adapts
        self._now_ns = now_ns
        self._budget = Budget(settings.overhead_budget_ratio, now_ns=now_ns())
        self._max_step_ns = int(settings.max_step_s * 1e9)
        self._looks_up_shapes = settings.replay or settings.baselines_path.exists()
        self.stalls = Stalls(settings.max_stall_ms * 1e6, num_steps=1 + looks_ahead)
        self.sampler = Sampler(
            seed,
            kinds,
            sample_every=settings.sample_every,
            max_steps=settings.max_capture_steps,
            is_on=off_reason is None and settings.enabled,
            looks_ahead=looks_ahead,
            draw=draw,
        )
        self.off_reason = off_reason or (None if settings.enabled else DISABLED)
        self.control_id: str | None = None

    @property
    def budget_ratio(self) -> float:
        return self._budget.ratio

    def allows(self, sample: Sample, plain_ns: int | None, *, is_quiet: bool) -> bool:
        """Tell whether a picked step may be recorded now; one that may not is counted by its reason.

        `plain_ns` is what steps like it take.
        """
        if not is_quiet:
            if sample.progress is None:
                self._drops.add("backlog", "as the one before is still being stored")
        elif sample.progress is None and not self._budget.is_open:
            self._budget.refuse()
            self._drops.add("budget", f"to keep to {self.budget_ratio:.3%} of the time")
        elif not self.allows_length(plain_ns or 0):
            pass
        else:
            return True
        return False

    def allows_length(self, window_ns: int) -> bool:
        """Tell whether a step is short enough to be recorded; one that isn't is counted."""
        if window_ns <= self._max_step_ns:
            return True
        self._drops.add("too_long", f"as it takes more than TAXBREAK_MAX_STEP_S={self._settings.max_step_s:g}")
        return False

    def detail(self, sample: Sample, kind: StepKind) -> Detail | None:
        """Choose how much to record of a step, None where any of it would stall the server; that is counted and said.

        A baseline is looked up by the shapes of its op: periodic recordings go without only where there are none, or
        where they would stall the server.
        """
        progress = sample.progress
        details: tuple[Detail, ...] = (Detail.SHAPES, Detail.TIMES)
        if sample.stacks:
            details = (Detail.STACKS,)
        elif progress is None and not self._looks_up_shapes:
            details = (Detail.TIMES,)
        own_ms = None if progress is None else progress.request.max_stall_ms
        own_ns = None if own_ms is None else own_ms * 1e6
        detail, refusal = self.stalls.choose(kind, details, is_asked=progress is not None, max_ns=own_ns), None
        if detail is None:
            stop_ms = self.stalls.predict_ns(kind, details[-1]) / 1e6
            bound = f"TAXBREAK_MAX_STALL_MS={self._settings.max_stall_ms:g}" if own_ms is None else f"{own_ms:g} ms"
            refusal = f"stopping the recording would take {stop_ms:.0f} ms, more than {bound}"
            if progress is None or progress.refusal is None:
                self._drops.add("stall", f"as {refusal}")
        if progress is not None:
            progress.refusal = refusal and f"{refusal}: ask with a larger max_stall_ms"
        return detail

    def settle(self, *, spent_ns: int, asked_ns: int, is_serving: bool) -> None:
        """Take in what recording has cost so far, the part of it for recordings asked for, and whether steps ran."""
        budget, sampler = self._budget, self.sampler
        take_in = budget.update if is_serving else budget.pass_by
        take_in(spent_ns=spent_ns, asked_ns=asked_ns, now_ns=self._now_ns())
        if budget.is_exhausted and self.off_reason is None:
            self.turn_off(OVERHEAD)
            logger.warning(
                "taxbreak: recording cannot be kept to %s of the time and is off; steps are still timed",
                f"{budget.ratio:.3%}",
            )
        elif self._adapts and budget.level != sampler.level:
            sampler.set(level=budget.level)

    def follow(self, request: CaptureRequest | None, control: Control | None, *, now_unix_ns: int) -> bool:
        """Take up what was asked for; True where the rules have changed."""
        self.sampler.follow(request, now_unix_ns=now_unix_ns)
        if control is None or control.control_id == self.control_id:
            return False
        self.control_id = control.control_id
        given = {
            "enabled": control.enabled,
            "sample_every": control.sample_every,
            "overhead_budget_ratio": control.overhead_budget_ratio,
        }
        try:
            settings = Settings(
                **self._settings.model_dump() | {name: value for name, value in given.items() if value is not None}
            )
        except ValidationError as error:
            logger.warning("taxbreak: a control message is not followed: %s", error.errors()[0]["msg"])
            return True
        if self.off_reason is None or self.off_reason in REVOCABLE:
            self.off_reason = None if settings.enabled else DISABLED
        self._budget.set(settings.overhead_budget_ratio)
        self.sampler.set(sample_every=settings.sample_every, level=0, is_on=self.off_reason is None)
        logger.info(
            "taxbreak: recording is %s: one step in %d of each kind, within %s of the time",
            "on" if self.off_reason is None else "off",
            settings.sample_every,
            f"{settings.overhead_budget_ratio:.3%}",
        )
        return True

    def turn_off(self, reason: str) -> None:
        """Record no more."""
        self.off_reason = reason
        self.sampler.set(is_on=False)
