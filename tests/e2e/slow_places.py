"""A plugin of vLLM that takes its time at one of eight places: the file SLOW_PLACES says where and how many ns.

It changes vLLM's classes before their objects are made, as a slow tokenizer or a slow scheduler would be slow. The
output thread waits for something that is not the interpreter; all others work.
"""

import functools
import os
import time
from importlib import import_module
from pathlib import Path

NAME = "slow_places"

PLACES = {
    "tokenizer": ("vllm.renderers.base", "BaseRenderer", "_tokenize_singleton_prompt_async"),
    "schedule": ("vllm.v1.core.sched.scheduler", "Scheduler", "schedule"),
    "grammar": ("vllm.v1.core.sched.scheduler", "Scheduler", "get_grammar_bitmask"),
    "update": ("vllm.v1.core.sched.scheduler", "Scheduler", "update_from_output"),
    "output thread": ("vllm.v1.serial_utils", "MsgpackEncoder", "encode_into"),
    "detokenizer": ("vllm.v1.engine.detokenizer", "BaseIncrementalDetokenizer", "update"),
    "ipc": ("vllm.distributed.device_communicators.shm_broadcast", "MessageQueue", "dequeue"),
    "worker": ("vllm.v1.worker.cpu_worker", "CPUWorker", "execute_model"),
}


def write_plugin(folder: Path) -> Path:
    """Make this file a distribution that vLLM finds in a folder of PYTHONPATH; return the folder."""
    info = folder / f"{NAME}-0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{NAME}.py").write_text(Path(__file__).read_text())
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{NAME} = {NAME}:register\n")
    return folder


def register() -> None:
    """Change the classes that this process has use for."""
    for place, (module, owner, name) in PLACES.items():
        kind = getattr(import_module(module), owner)
        call = getattr(kind, name)
        if not hasattr(call, "is_slow"):
            slow = _slow_coroutine(call, place) if name.endswith("_async") else _slow(call, place)
            slow.is_slow = True
            setattr(kind, name, slow)


def _slow(call, place):
    @functools.wraps(call)
    def slow(*args, **kwargs):
        result = call(*args, **kwargs)
        if place != "ipc" or (type(result) is tuple and result[0] == "execute_model"):
            _take_time(place)
        return result

    return slow


def _slow_coroutine(call, place):
    @functools.wraps(call)
    async def slow(*args, **kwargs):
        result = await call(*args, **kwargs)
        _take_time(place)
        return result

    return slow


def _take_time(place: str) -> None:
    where, _, ns = Path(os.environ["SLOW_PLACES"]).read_text().partition("=")
    if where != place:
        return
    if place == "output thread":
        time.sleep(int(ns) / 1e9)
    else:
        until_ns = time.monotonic_ns() + int(ns)
        while time.monotonic_ns() < until_ns:
            pass
