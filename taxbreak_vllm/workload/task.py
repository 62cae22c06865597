"""What a simulating process is asked, and how it says no."""

from collections.abc import Mapping

import msgspec

from taxbreak_vllm.traffic.rows import Scalar


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is other than recorded: fields of vLLM's scheduler_config, blocks, replicas, what parts take times."""

    settings: Mapping[str, Scalar] = {}
    num_blocks: int | None = None
    replicas: int = 1
    host: float = 1.0
    device: float = 1.0
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
        return said | {name: f"{value:g}" for name, value in parts.items() if value != 1}


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


class Failure(msgspec.Struct, frozen=True):
    """Why a task was not done."""

    reason: str


Task = Check | Fit | Predict
