"""A worker whose device takes what a step's work tells, which is not linear in it: for predictions to be held against.

As `rig.simulated`, but for `Knob.DEVICE`: how long the device takes is `device_ns` of the step's batch.
"""

from typing import Any

from rig import simulated
from taxbreak_vllm.traffic.batch import Batch, batch_of

WORKER = "rig.timed.Worker"


def device_ns(batch: Batch) -> int:
    """Return what the device takes: a prompt grows faster than its tokens, a batch slower than its requests."""
    prompts_ns = 18_000 * batch.prompt_tokens**1.1 + 300_000 * batch.num_prefills
    return int(6e6 + prompts_ns + 1_300_000 * batch.num_decodes**0.85 + 100 * batch.context)


class Worker(simulated.Worker):
    """Its device's time is the batch's."""

    def work_ns(self, scheduled: Any) -> int:
        return device_ns(batch_of(scheduled, lambda ids: range(len(ids))))
