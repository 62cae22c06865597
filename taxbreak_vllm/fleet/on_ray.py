"""Batches as tasks of a Ray cluster (the extra `ray`), each asking the archive itself for what it needs.

A task whose worker dies is run again by Ray elsewhere; its object is the same. One that takes its workers with it time
and again is done here, alone. Ray is loaded nowhere else.
"""

import re
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from taxbreak_vllm.fleet.batch import Batch, Outcome, analyze_batch
from taxbreak_vllm.fleet.pool import carefully
from taxbreak_vllm.model.errors import SettingsError, TaxbreakError
from taxbreak_vllm.model.version import package_version

if TYPE_CHECKING:
    pass

_AHEAD = 2  # tasks a processor
_NUM_RETRIES = 2
_CONNECT_S = 5.0


def outcomes_on_ray(batches: Iterable[Batch], address: str) -> Iterator[Outcome]:
    """Yield what became of each batch, in no order; `address` is one that `ray.init` takes.

    Raises SettingsError where no cluster answers there, TaxbreakError where Ray is missing.
    """
    try:
        import ray
    except ImportError:
        raise TaxbreakError("--ray needs the package ray: pip install 'taxbreak-vllm[ray]'") from None
    _require_listener(address)
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(f"--ray {address}: {' '.join(str(error).split())}") from None
    try:
        yield from _outcomes(batches)
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raise SettingsError where nobody listens: Ray itself would try for six minutes."""
    found = re.fullmatch(r"(?:ray://)?([^:/]+):(\d{1,5})", address)
    if found is None:
        return  # auto, local
    try:
        socket.create_connection((found[1], int(found[2])), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise SettingsError(f"--ray {address}: no cluster answers: {error}") from None


def _outcomes(batches: Iterable[Batch]) -> Iterator[Outcome]:
    import ray
    from ray.exceptions import RayTaskError, WorkerCrashedError

    task = ray.remote(num_cpus=1, max_retries=_NUM_RETRIES)(_checked)
    most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, under_way = iter(batches), dict[ray.ObjectRef, Batch]()
    while True:
        while len(under_way) < most and (batch := next(waiting, None)) is not None:
            under_way[task.remote(batch)] = batch
        if not under_way:
            return
        (done, *_), _ = ray.wait(list(under_way), num_returns=1)
        batch = under_way.pop(done)
        try:
            yield ray.get(done)
        except WorkerCrashedError:
            yield from carefully([batch])
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, TaxbreakError) else error from None


def _checked(batch: Batch) -> Outcome:
    if package_version() != batch.version:
        raise SettingsError(f"this node has taxbreak-vllm {package_version()}, where {batch.version} is asked for")
    return analyze_batch(batch)
