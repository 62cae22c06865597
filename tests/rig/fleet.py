"""Captures of a fleet, made of one that a real server recorded: other hosts, times, versions, and known effects.

In: the folder of a capture, or a trace of one step. Out: its files with all times multiplied, as an archive keeps them.
"""

import gzip
import json
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from taxbreak_vllm import analyze
from taxbreak_vllm.archive.bundle import pack_files
from taxbreak_vllm.archive.layout import CAPTURES, Key
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.fleet.analyze import Count
from taxbreak_vllm.fleet.batch import Batch, Outcome, analyze_batch
from taxbreak_vllm.model.host import HostFacts
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.spool.layout import STEP, TRACE

DATA = Path(__file__).parents[1] / "data"
RECORDED = DATA / "cpu_decode"
HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS
BEGIN_NS = 1_795_824_000 * 10**9  # a midnight in UTC

_TIMES = ("window_ns", "plain_window_ns", "iteration_ns", "plain_iteration_ns")
_GRID = 500  # factors are a whole number of this: there are so many traces, however many captures


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Hosts that all serve a model, and go to another version half-way, with known effects on all times of a step.

    `change` is the new version's (1.05: all takes 5 % longer), `slow` that of some hosts by number, whose governor is
    `powersave`. Hosts differ by `between`, starts of a server by `restart`, captures by `noise` (of logarithms).
    """

    name: str = "node"  # of its hosts, before a number
    num_hosts: int = 20
    num_captures: int = 10
    days: float = 2.0
    change: float = 1.0
    slow: dict[int, float] | None = None
    between: float = 0.01
    restart: float = 0.01
    noise: float = 0.02
    seed: int = 0

    def captures(self, recorded: Path = RECORDED) -> Iterator[tuple[Key, bytes]]:
        """Yield each capture, packed, with its key."""
        draw = np.random.default_rng(self.seed)
        slow = self.slow or {}
        for host in range(self.num_hosts):
            level = slow.get(host, 1.0) * np.exp(self.between * draw.standard_normal())
            for version in range(2):
                start = level * self.change**version * np.exp(self.restart * draw.standard_normal())
                for number in range(self.num_captures // 2):
                    place = (version + (number + draw.uniform()) / (self.num_captures // 2)) / 2
                    yield packed(
                        recorded,
                        factor=start * np.exp(self.noise * draw.standard_normal()),
                        host=f"{self.name}-{host:04d}",
                        vllm=("0.31.0", "0.32.0")[version],
                        at_ns=BEGIN_NS + round(self.days * DAY_NS * place),
                        facts=HostFacts(
                            cpu="EPYC", governor="powersave" if host in slow else "performance", num_cpus=8
                        ),
                        number=number,
                    )


def capture_of(trace: Path, folder: Path) -> Path:
    """Return the folder of a capture of a GPU's step, of a trace of that step, as its worker would have kept it.

    What only the worker knows is made up: a decode step of four requests, half of whose time was the profiler's.
    """
    breakdown = analyze(trace)
    (step,) = breakdown.steps
    info = msgspec.json.decode((RECORDED / STEP).read_bytes(), type=StepInfo)
    name = breakdown.source.device_name
    server = replace(info.server, model_name=trace.name.split(".")[0], device_type="cuda", device_name=name)
    told = replace(
        info,
        server=server,
        window_ns=step.window_ns,
        plain_window_ns=step.window_ns // 2,
        iteration_ns=None,
        plain_iteration_ns=None,
        num_bracketed=1,
    )
    folder.mkdir()
    (folder / STEP).write_bytes(msgspec.json.encode(told))
    shutil.copyfile(trace, folder / TRACE)
    return folder


def packed(
    recorded: Path, *, factor: float, host: str, vllm: str, at_ns: int, facts: HostFacts, number: int
) -> tuple[Key, bytes]:
    """Return a capture with other times, of another host and version."""
    info = msgspec.json.decode((recorded / STEP).read_bytes(), type=StepInfo)
    rounded = round(factor * _GRID) / _GRID
    server_id = f"vllm-{host}-{vllm}"
    told = replace(
        info,
        **{name: round(getattr(info, name) * rounded) for name in _TIMES if getattr(info, name) is not None},
        server=replace(info.server, server_id=server_id, host=host, vllm=vllm, settings_hash="0123456789"),
        step_id=f"{server_id}.r0.s{number}",
        started_unix_ns=at_ns,
        host=facts,
    )
    data = pack_files({STEP: msgspec.json.encode(told), TRACE: _trace(str(recorded / TRACE), round(factor * _GRID))})
    key = Key.of(
        CAPTURES,
        data,
        suffix="tar",
        unix_ns=at_ns,
        model=info.server.model_name,
        vllm=vllm,
        gpu=info.server.device_name,
        server=server_id,
    )
    return key, data


def fill(store: Store, captures: Iterator[tuple[Key, bytes]]) -> list[Key]:
    """Put captures into an archive."""
    keys = []
    for key, data in captures:
        store.put(key, data)
        keys.append(key)
    return keys


@lru_cache(maxsize=512)
def _trace(path: str, parts: int) -> bytes:
    tree = json.loads(gzip.decompress(Path(path).read_bytes()))
    begin = min(event["ts"] for event in tree["traceEvents"] if "ts" in event)
    for event in tree["traceEvents"]:
        if "ts" in event:
            event["ts"] = round(begin + (event["ts"] - begin) * parts / _GRID, 3)
        if "dur" in event:
            event["dur"] = round(event["dur"] * parts / _GRID, 3)
    return gzip.compress(json.dumps(tree).encode(), 1, mtime=0)


def killed_by(digest: str, batch: Batch) -> Outcome:
    """Analyze a batch in a process that a capture kills, that of this digest."""
    if any(key.digest == digest for key in batch.captures):
        os.kill(os.getpid(), signal.SIGKILL)
    return analyze_batch(batch)


def killed_once(flag: Path, batch: Batch) -> Outcome:
    """Analyze a batch in a process that is killed the first time, however many there are, as by a lack of memory."""
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return analyze_batch(batch)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class RayKiller:
    """Kills one worker of a Ray that this process is about to start, once, at work: a progress of `analyze`.

    Its workers are known by a variable that they inherit.
    """

    _VARIABLE = "TAXBREAK_RAY_OF_A_TEST"

    def __init__(self, is_time: Callable[[Count], bool]) -> None:
        self._is_time = is_time
        self._mark = uuid.uuid4().hex
        self.killed: list[int] = []
        os.environ[self._VARIABLE] = self._mark

    def __call__(self, count: Count) -> None:
        if self.killed or not self._is_time(count):
            return
        for process in Path("/proc").iterdir():
            try:
                is_at_work = process.name.isdigit() and (process / "cmdline").read_bytes().startswith(b"ray::_checked")
                if is_at_work and f"{self._VARIABLE}={self._mark}".encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    self.killed.append(int(process.name))
                    return
            except OSError:
                continue
