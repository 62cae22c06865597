"""What a simulating process is asked, and how it says no."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from taxbreak_vllm.model.sweep import Aim
from taxbreak_vllm.traffic.rows import Scalar

DECODE, PREFILL = "decode", "prefill"  # kinds of steps: without prompts, and with


class WorkerStep(msgspec.Struct, frozen=True, kw_only=True):
    """What `whatif` makes of a plain step that was captured, of a kind: its time as it is and as predicted, ns.

    Of an iteration the engine's loop is a part.
    """

    kind: str
    is_iteration: bool
    plain_ns: int
    predicted_ns: int
    low_ns: int
    high_ns: int


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """What a change makes of a worker's steps, and of which kind that is not known and why."""

    steps: tuple[WorkerStep, ...] = ()
    unknown: Mapping[str, str] = {}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is other than recorded: fields of vLLM's scheduler_config, blocks, replicas, what parts take times.

    `host_added_ns` is what the engine's loop takes longer for each step, or shorter. `worker` is what becomes of a
    worker's steps where the host takes other times, or where their launches are one `graph`.
    """

    settings: Mapping[str, Scalar] = {}
    num_blocks: int | None = None
    replicas: int = 1
    host: float = 1.0
    host_added_ns: float = 0.0
    device: float = 1.0
    graph: str | None = None
    worker: Worker = Worker()
    slo: Mapping[str, float] = {}

    @property
    def changes_anything(self) -> bool:
        """Whether the server is another."""
        return bool(self.settings) or self != Change(slo=self.slo)

    def said(self) -> dict[str, str]:
        """Return it in words."""
        said = {name: str(value) for name, value in self.settings.items()}
        if self.num_blocks is not None:
            said["num_gpu_blocks"] = str(self.num_blocks)
        parts = {"replicas": self.replicas, "host": self.host, "device": self.device}
        said |= {name: f"{value:g}" for name, value in parts.items() if value != 1}
        said |= {"graph": self.graph} if self.graph else {}
        return said | ({"host": f"{self.host_added_ns / 1e6:+g} ms a step"} if self.host_added_ns else {})


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Schedule the traffic at a path again."""

    path: str


class Fit(msgspec.Struct, frozen=True, tag="fit"):
    """Fit what the steps of the traffic at a path cost."""

    path: str


class Predict(msgspec.Struct, frozen=True, tag="predict", kw_only=True):
    """Predict: requests come `load` times as fast, or from a file; `arrivals` is the shape of their gaps."""

    path: str
    change: Change
    load: float = 1.0
    file: str | None = None
    arrivals: float | None = None


class Cell(msgspec.Struct, frozen=True):
    """One point of a sweep: a server, and how many times as fast requests come."""

    change: Change
    load: float = 1.0


class Search(msgspec.Struct, frozen=True):
    """For each cell the greatest load that keeps the SLO, or the fewest replicas, between two ends."""

    aim: Aim
    least: float
    most: float


class Sweep(msgspec.Struct, frozen=True, tag="sweep", kw_only=True):
    """Predict each cell, or search in each; on so many processes of this machine, or on Ray at an address."""

    path: str
    cells: tuple[Cell, ...]
    slo: Mapping[str, float]
    attainment: float
    search: Search | None = None
    file: str | None = None
    arrivals: float | None = None
    num_workers: int = 1
    ray: str | None = None


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far a task is."""

    done: int
    total: int
    doing: str = ""


class Failure(msgspec.Struct, frozen=True):
    """Why a task was not done."""

    reason: str


Task = Check | Fit | Predict | Sweep


def load_words(load: float, arrivals: float | None = None, file: str | None = None) -> str:
    """Say which requests are served."""
    said = [] if file is None else [Path(file).name]
    said += [] if load == 1 else [f"{load:g} times as fast"]
    said += [] if arrivals is None else [f"gaps of a gamma distribution of shape {arrivals:g}"]
    return ", ".join(said) or "as recorded"
