"""The process that imports vLLM: one task as JSON on standard input, its answer as JSON on standard output.

Nothing else is written there: what vLLM prints goes to standard error.
"""

import gc
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from taxbreak_vllm.machine.parent import die_with_parent
from taxbreak_vllm.model.errors import TaxbreakError, WorkloadError
from taxbreak_vllm.model.workload import Fits, Identities, Prediction
from taxbreak_vllm.workload.loads import read_load
from taxbreak_vllm.workload.recording import Recorded, read_apis, read_engines
from taxbreak_vllm.workload.requests import Requests, faster, gamma_arrivals
from taxbreak_vllm.workload.task import Check, Failure, Fit, Predict, Task


def answer(task: Task) -> Identities | Fits | Prediction:
    """Do a task; raises TaxbreakError where it cannot be done."""
    match task:
        case Check():
            return _check(read_engines(Path(task.path)))
        case Fit():
            recorded, apis = _one_engine(task.path), read_apis(Path(task.path))
            from taxbreak_vllm.workload.predict import fit

            return fit(recorded, apis)
        case Predict():
            return _predict(task)


def main() -> None:
    """Do the task of standard input; exit 3 with a `Failure` where that is refused."""
    die_with_parent()
    gc.disable()  # no cycles are made that matter, and looking for them takes a tenth of the time
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        found = msgspec.json.encode(answer(msgspec.json.decode(sys.stdin.buffer.read(), type=Task)))
        code = 0
    except TaxbreakError as error:
        found, code = msgspec.json.encode(Failure(str(error))), 3
    with answers:
        answers.write(found)
    sys.stderr.flush()
    os._exit(code)  # vLLM leaves threads


def _check(engines: Sequence[Recorded]) -> Identities:
    from taxbreak_vllm.workload.identity import check_identity

    found = []
    for engine in engines:
        begun_ns = time.process_time_ns()
        identity = check_identity(engine)
        found.append(replace(identity, elapsed_ns=time.process_time_ns() - begun_ns))
    return Identities(engines=tuple(found))


def _predict(task: Predict) -> Prediction:
    recorded, apis = _one_engine(task.path), read_apis(Path(task.path))
    setup = recorded.setup
    given: Requests | None = None
    if task.file is not None:
        length = int(setup.config["model_config"]["max_model_len"] or 0)
        given = read_load(Path(task.file), hash_block_size=setup.hash_block_size, max_model_len=length)

    from taxbreak_vllm.workload.predict import predict

    def traffic(requests: Requests) -> Requests:
        wanted = faster(given or requests, task.load)
        return wanted if task.arrivals is None else gamma_arrivals(wanted, task.arrivals)

    said = [] if task.file is None else [Path(task.file).name]
    said += [] if task.load == 1 else [f"{task.load:g} times as fast"]
    said += [] if task.arrivals is None else [f"gaps of a gamma distribution of shape {task.arrivals:g}"]
    return predict(recorded, apis, task.change, traffic, load=", ".join(said) or "as recorded")


def _one_engine(path: str) -> Recorded:
    engines = read_engines(Path(path))
    if len(engines) != 1:
        raise WorkloadError(f"{path}: {len(engines)} engines; a prediction is of the traffic of a single one")
    return engines[0]


if __name__ == "__main__":
    main()
