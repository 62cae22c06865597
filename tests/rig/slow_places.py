"""A plugin of vLLM that takes its time at one of several places, as the knobs in the file SLOW_PLACES say.

It changes vLLM's classes before their objects are made, as a slow tokenizer or a slow scheduler would be slow.
"""

import functools
import os
from importlib import import_module
from pathlib import Path

from rig.knobs import Knob, Knobs

PLACES = {
    Knob.TOKENIZER: ("vllm.renderers.base", "BaseRenderer", "_tokenize_singleton_prompt_async"),
    Knob.SCHEDULE: ("vllm.v1.core.sched.scheduler", "Scheduler", "schedule"),
    Knob.GRAMMAR: ("vllm.v1.core.sched.scheduler", "Scheduler", "get_grammar_bitmask"),
    Knob.UPDATE: ("vllm.v1.core.sched.scheduler", "Scheduler", "update_from_output"),
    Knob.POST: ("vllm.v1.engine.core", "EngineCoreProc", "post_step"),
    Knob.OUTPUT_THREAD: ("vllm.v1.serial_utils", "MsgpackEncoder", "encode_into"),
    Knob.DETOKENIZER: ("vllm.v1.engine.detokenizer", "BaseIncrementalDetokenizer", "update"),
    Knob.IPC: ("vllm.distributed.device_communicators.shm_broadcast", "MessageQueue", "dequeue"),
    Knob.WORKER: ("vllm.v1.worker.cpu_worker", "CPUWorker", "execute_model"),
}


def register() -> None:
    """Be a general plugin."""
    slow_down(Knobs(Path(os.environ["SLOW_PLACES"])))


def slow_down(knobs: Knobs) -> None:
    """Change vLLM's classes in this process and in its forks; twice is once."""
    for knob, (module, owner, name) in PLACES.items():
        kind = getattr(import_module(module), owner)
        call = getattr(kind, name)
        if not hasattr(call, "is_slow"):
            slow = (_slow_coroutine if name.endswith("_async") else _slow)(call, knobs, knob)
            slow.is_slow = True
            setattr(kind, name, slow)


def _slow(call, knobs, knob):
    @functools.wraps(call)
    def slow(*args, **kwargs):
        result = call(*args, **kwargs)
        if knob is not Knob.IPC or (type(result) is tuple and result[0] == "execute_model"):
            knobs.spend(knob)
        return result

    return slow


def _slow_coroutine(call, knobs, knob):
    @functools.wraps(call)
    async def slow(*args, **kwargs):
        result = await call(*args, **kwargs)
        knobs.spend(knob)
        return result

    return slow
