"""The words of a command: options of `workload predict` in, the task out, or one line about a word that is none."""

import re
from collections.abc import Iterable
from pathlib import Path

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.traffic.rows import Scalar
from taxbreak_vllm.workload.task import Change, Predict

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}


def predict_task(
    path: Path,
    *,
    load: str = "1x",
    arrivals: str | None = None,
    settings: Iterable[str] = (),
    replicas: int = 1,
    host: float = 1.0,
    device: float = 1.0,
    slo: str = "",
) -> Predict:
    """Read the options; raises WorkloadError for one that is not understood."""
    found = dict(map(_setting, settings))
    num_blocks = found.pop("num_gpu_blocks", None)
    if num_blocks is not None and (type(num_blocks) is not int or num_blocks < 1):
        raise WorkloadError(f"--set num_gpu_blocks={num_blocks}: a number of blocks is expected")
    factor = re.fullmatch(r"(\d+(?:\.\d+)?)x", load)
    if factor and not float(factor[1]):
        raise WorkloadError("--load 0x: nothing would come")
    return Predict(
        path=str(path),
        change=Change(
            settings=found,
            num_blocks=num_blocks,
            replicas=replicas,
            host=host,
            device=device,
            slo=dict(_bound(word) for word in slo.split(",") if word),
        ),
        load=float(factor[1]) if factor else 1.0,
        file=None if factor else load,
        arrivals=None if arrivals is None else _shape(arrivals),
    )


def _setting(word: str) -> tuple[str, Scalar]:
    name, is_there, value = word.partition("=")
    if not (is_there and re.fullmatch(r"[a-z_]+", name) and value):
        raise WorkloadError(f"--set {word}: NAME=VALUE is expected, as max_num_seqs=32")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def _shape(word: str) -> float:
    found = re.fullmatch(r"gamma:(\d+(?:\.\d+)?)", word)
    if not found or not 0.01 <= float(found[1]) <= 100:
        raise WorkloadError(f"--arrivals {word}: gamma:SHAPE is expected, as gamma:0.3")
    return float(found[1])


def _bound(word: str) -> tuple[str, float]:
    found = re.fullmatch(r"(ttft|tpot|e2e)=(\d+(?:\.\d+)?)(us|ms|s|)", word)
    if not found:
        raise WorkloadError(f"--slo {word}: ttft, tpot or e2e and a time is expected, as ttft=500ms")
    return found[1], float(found[2]) * _UNITS_S[found[3]]
