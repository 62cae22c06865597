"""What the parent asks of the child: a call to replay, and how. Neither needs torch."""

from dataclasses import dataclass

from taxbreak_vllm.model.baseline import Baseline, Outcome
from taxbreak_vllm.trace.calls import Call, Kernel, signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to replay: `runs` after `warmups`, within `max_bytes`, lists of tensors in `dtype`, at the lowest priority.

    `modules` and what registers the ops of `namespaces` are imported before the first task. Where floors are measured,
    `ceilings_s` is how long ceilings are too; 0 for not at all.
    """

    device: str = "cpu"
    warmups: int = 5
    runs: int = 30
    max_bytes: int = 4 * 2**30
    dtype: str = ""
    modules: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    niceness: int = 19
    ceilings_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A call to replay and the kernels it launched in the trace; on the CPU backend that is the op itself."""

    call: Call
    kernels: tuple[Kernel, ...] = (Kernel(),)

    def entries(self, outcome: Outcome, reason: str, *, now_ns: int) -> list[Baseline]:
        """Say the same of every kernel wanted."""
        return [
            Baseline(
                signature=signature(self.call, kernel),
                op=self.call.op,
                kernel=kernel.name,
                outcome=outcome,
                reason=reason,
                measured_unix_ns=now_ns,
            )
            for kernel in self.kernels
        ]
