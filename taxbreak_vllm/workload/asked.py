"""The words of a command: options of `workload predict` and `sweep` in, the task out, or one line about a word."""

import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import msgspec

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.model.sweep import Aim
from taxbreak_vllm.traffic.rows import Scalar
from taxbreak_vllm.workload.task import Cell, Change, Predict, Search, Sweep

MAX_POINTS, ATTAINMENT = 256, 0.9
MAX_REPLICAS = 1024
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}
_NUMBER = r"\d+(?:\.\d+)?"
_ENDS = {Aim.THROUGHPUT: (1 / 16, 16.0), Aim.REPLICAS: (1.0, 64.0)}


def predict_task(
    path: str | Path,
    *,
    load: str = "1x",
    arrivals: str | None = None,
    settings: Iterable[str] = (),
    replicas: int = 1,
    host: str = "1",
    device: float = 1.0,
    graph: str | None = None,
    slo: str = "",
) -> Predict:
    """Read the options; raises WorkloadError for one that is not understood."""
    lists = _settings(settings)
    for name, values in lists.items():
        if len(values) > 1:
            raise WorkloadError(f"--set {name}: one value is expected; `workload sweep` takes several")
    loads, file = _loads(load)
    if len(loads) > 1:
        raise WorkloadError(f"--load {load}: one load is expected; `workload sweep` takes several")
    times, added_ns = _host(host)
    return Predict(
        path=str(path),
        change=_change(
            {name: value for name, (value,) in lists.items()},
            Change(replicas=replicas, host=times, host_added_ns=added_ns, device=device, graph=graph, slo=_slo(slo)),
        ),
        load=loads[0],
        file=file,
        arrivals=None if arrivals is None else _shape(arrivals),
    )


def sweep_task(
    path: str | Path,
    *,
    load: str | None = None,
    arrivals: str | None = None,
    settings: Iterable[str] = (),
    replicas: str | None = None,
    host: str = "1",
    device: str = "1",
    slo: str = "",
    aim: Aim | None = None,
    attainment: float = ATTAINMENT,
    max_points: int = MAX_POINTS,
    num_workers: int = 1,
    ray: str | None = None,
) -> Sweep:
    """Read the options; raises WorkloadError for one that is not understood, no points, or more than `max_points`."""
    lists, bounds, shape = _settings(settings), _slo(slo), None if arrivals is None else _shape(arrivals)
    loads, file = ((1.0,), None) if load is None else _loads(load)
    counts = tuple(map(int, _numbers("--replicas", replicas or "1", 1, MAX_REPLICAS, r"\d+")))
    hosts = tuple(dict.fromkeys(map(_host, host.split(","))))
    devices = _numbers("--device", device, 0.01, 100)
    search = None
    if aim is not None:
        if not bounds:
            raise WorkloadError(f"--for {aim}: an --slo to keep is expected, as ttft=500ms,tpot=50ms")
        if aim is Aim.THROUGHPUT:
            search, loads = _search(aim, f"--load {load}", loads if load and file is None else None), (1.0,)
        else:
            search, counts = _search(aim, f"--replicas {replicas}", counts if replicas else None), (1,)
    num = len(loads) * len(counts) * len(hosts) * len(devices)
    for values in lists.values():
        num *= len(values)
    if num == 1 and search is None:
        raise WorkloadError("nothing to sweep: several values are expected, as --set max_num_seqs=8,16 or --load 1x,2x")
    if num > max_points:
        raise WorkloadError(f"{num:,} points are more than {max_points:,}: name fewer values, or raise --max-points")
    cells = []
    for values, count, (times, added_ns), device_times in product(product(*lists.values()), counts, hosts, devices):
        change = Change(replicas=count, host=times, host_added_ns=added_ns, device=device_times, slo=bounds)
        change = _change(dict(zip(lists, values, strict=True)), change)
        cells += [Cell(change, each) for each in loads]
    return Sweep(
        path=str(path),
        cells=tuple(cells),
        slo=bounds,
        attainment=attainment,
        search=search,
        file=file,
        arrivals=shape,
        num_workers=num_workers,
        ray=ray,
    )


def _search(aim: Aim, words: str, given: tuple[float, ...] | None) -> Search:
    if given is None:
        return Search(aim, *_ENDS[aim])
    if len(given) != 2 or given[0] >= given[1]:
        example = "0.5x,8x" if aim is Aim.THROUGHPUT else "1,64"
        raise WorkloadError(f"{words}: the two ends of the search are expected, as {example}")
    return Search(aim, *map(float, given))


def _change(settings: dict[str, Scalar], others: Change) -> Change:
    num_blocks = settings.pop("num_gpu_blocks", None)
    if num_blocks is not None and (type(num_blocks) is not int or num_blocks < 1):
        raise WorkloadError(f"--set num_gpu_blocks={num_blocks}: a number of blocks is expected")
    return msgspec.structs.replace(others, settings=settings, num_blocks=num_blocks)


def _settings(words: Iterable[str]) -> dict[str, tuple[Scalar, ...]]:
    found: dict[str, tuple[Scalar, ...]] = {}
    for word in words:
        name, is_there, values = word.partition("=")
        if not (is_there and re.fullmatch(r"[a-z_]+", name) and all(values.split(","))):
            raise WorkloadError(f"--set {word}: NAME=VALUE is expected, as max_num_seqs=32")
        if name in found:
            raise WorkloadError(f"--set {word}: {name} is given twice")
        found[name] = tuple(dict.fromkeys(map(_scalar, values.split(","))))
    return found


def _scalar(word: str) -> Scalar:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _loads(word: str) -> tuple[tuple[float, ...], str | None]:
    """Return factors and no file, or one factor and a file."""
    parts = [re.fullmatch(rf"({_NUMBER})x", part) for part in word.split(",")]
    factors = tuple(dict.fromkeys(float(part[1]) for part in parts if part))
    if not factors:
        return (1.0,), word
    if None in parts:
        raise WorkloadError(f"--load {word}: factors are expected, as 0.5x,1x,2x, or one file")
    if 0.0 in factors:
        raise WorkloadError(f"--load {word}: nothing would come")
    return factors, None


def _numbers(option: str, words: str, least: float, most: float, form: str = _NUMBER) -> tuple[float, ...]:
    values = [float(word) if re.fullmatch(form, word) else -1.0 for word in words.split(",")]
    if not all(least <= value <= most for value in values):
        kind = "numbers" if form == _NUMBER else "whole numbers"
        raise WorkloadError(f"{option} {words}: {kind} of {least:g} to {most:g} are expected, as 1,2")
    return tuple(dict.fromkeys(values))


def _host(word: str) -> tuple[float, float]:
    """Return what the host's part takes times, and what the engine's loop takes longer for each step, ns."""
    added = re.fullmatch(rf"([+-])({_NUMBER})(us|ms|s)", word)
    if added:
        return 1.0, float(added[1] + added[2]) * _UNITS_S[added[3]] * 1e9
    if not re.fullmatch(_NUMBER, word) or not 0.01 <= float(word) <= 100:
        raise WorkloadError(f"--host {word}: a factor of 0.01 to 100 or a time is expected, as 1.3 or -1ms")
    return float(word), 0.0


def _shape(word: str) -> float:
    found = re.fullmatch(rf"gamma:({_NUMBER})", word)
    if not found or not 0.01 <= float(found[1]) <= 100:
        raise WorkloadError(f"--arrivals {word}: gamma:SHAPE is expected, as gamma:0.3")
    return float(found[1])


def _slo(words: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for word in words.split(",") if words else ():
        bound = re.fullmatch(rf"(ttft|tpot|e2e)=({_NUMBER})(us|ms|s|)", word)
        if not bound or not float(bound[2]):
            raise WorkloadError(f"--slo {word}: ttft, tpot or e2e and a time is expected, as ttft=500ms")
        if bound[1] in found:
            raise WorkloadError(f"--slo {word}: {bound[1]} is given twice")
        found[bound[1]] = float(bound[2]) * _UNITS_S[bound[3]]
    return found
