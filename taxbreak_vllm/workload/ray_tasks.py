"""A function of many values as Ray tasks; Ray does one again whose worker dies.

Ray is imported here alone. What the function needs is installed on its workers.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from taxbreak_vllm.model.errors import WorkloadError

LOCAL = "local"  # instead of an address: a cluster of this machine, which ends with us
MAX_RETRIES = 2
_ENVIRONMENT = {"VLLM_PLUGINS": "", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
_SAID = 300  # characters of an error of Ray's

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


def on_ray(
    work: Callable[[C, A], B],
    common: C,
    values: Sequence[A],
    lost: Callable[[A, str], B],
    *,
    address: str,
    num_workers: int,
) -> Iterator[tuple[int, B]]:
    """Yield the place of each value and what comes of it, in the order in which they are done; each once.

    `common` is sent to each machine once; `num_workers` are those of `LOCAL`. Raises WorkloadError where there is no
    Ray, here or at the address.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise WorkloadError("Ray is not installed here: pip install 'taxbreak-vllm[ray]'") from error
    try:
        ray.init(
            address=address,
            num_cpus=num_workers if address == LOCAL else None,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # where its processes do not come up in time, Ray raises no other kind
        raise WorkloadError(f"--ray {address}: {' '.join(str(error).split())[:_SAID]}") from error
    try:
        task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, runtime_env={"env_vars": _ENVIRONMENT})(work)
        shared = ray.put(common)
        places = {task.remote(shared, value): place for place, value in enumerate(values)}
        while places:
            for done in ray.wait(list(places))[0]:
                place = places.pop(done)
                try:
                    found = ray.get(done)
                except RayError as error:
                    why = getattr(error, "cause", None) or error  # of a task that raised
                    found = lost(values[place], f"Ray: {' '.join(str(why).split())[:_SAID]}")
                yield place, found
    finally:
        ray.shutdown()
