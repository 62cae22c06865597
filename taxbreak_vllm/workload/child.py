"""The process that imports vLLM: one task as JSON on standard input, its answer as JSON on standard output.

Nothing else is written there but, in lines before it, how far a long task is: what vLLM prints goes to standard error.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from taxbreak_vllm.machine.parent import die_with_parent
from taxbreak_vllm.model.errors import TaxbreakError, WorkloadError
from taxbreak_vllm.model.sweep import SweepPoint, Swept
from taxbreak_vllm.model.workload import Fits, Identities, Prediction
from taxbreak_vllm.traffic.rows import Setup
from taxbreak_vllm.workload.changes import check_settings
from taxbreak_vllm.workload.loads import read_load
from taxbreak_vllm.workload.recording import Recorded, read_apis, read_engines
from taxbreak_vllm.workload.requests import Requests, arriving
from taxbreak_vllm.workload.task import Check, Failure, Fit, Predict, Progress, Sweep, Task, load_words

if TYPE_CHECKING:  # it imports vLLM
    from taxbreak_vllm.workload.sweep import Asked


def answer(
    task: Task, report: Callable[[Progress], None] = lambda progress: None
) -> Identities | Fits | Prediction | Swept:
    """Do a task; raises TaxbreakError where it cannot be done. `report` is told how far it is."""
    match task:
        case Check():
            return _check(read_engines(Path(task.path)))
        case Fit():
            recorded, apis = _one_engine(task.path), read_apis(Path(task.path))
            from taxbreak_vllm.workload.predict import fit

            return fit(recorded, apis)
        case Predict():
            return _predict(task)
        case Sweep():
            return _sweep(task, report)


def main() -> None:
    """Do the task of standard input; exit 3 with a `Failure` where that is refused."""
    die_with_parent()
    gc.disable()  # no cycles are made that matter, and looking for them takes a tenth of the time
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def report(progress: Progress) -> None:
        answers.write(msgspec.json.encode(progress) + b"\n")
        answers.flush()

    try:
        found = msgspec.json.encode(answer(msgspec.json.decode(sys.stdin.buffer.read(), type=Task), report))
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
    check_settings(recorded.setup, task.change.settings)
    given = None if task.file is None else _read_load(task.file, recorded.setup)

    from taxbreak_vllm.workload import predict

    checked = predict.check(recorded, apis)
    requests = arriving(given or checked.requests, load=task.load, arrivals=task.arrivals)
    return predict.answer(checked, task.change, requests, load=load_words(task.load, task.arrivals, task.file))


def _sweep(task: Sweep, report: Callable[[Progress], None]) -> Swept:
    report(Progress(0, len(task.cells), "checking the recording"))
    recorded, apis = _one_engine(task.path), read_apis(Path(task.path))
    for cell in task.cells:
        check_settings(recorded.setup, cell.change.settings)
    given = None if task.file is None else _read_load(task.file, recorded.setup)

    from taxbreak_vllm.workload import predict
    from taxbreak_vllm.workload.front import with_front
    from taxbreak_vllm.workload.sweep import Asked

    checked = predict.check(recorded, apis)
    found = Swept(
        engine=checked.engine,
        vllm=checked.vllm,
        load=load_words(1.0, task.arrivals, task.file),
        slo=task.slo,
        attainment=task.attainment,
        checks=checked.checks,
        aim=None if task.search is None else task.search.aim,
        measured=predict.measured(checked, task.slo),
        reason=checked.reason,
    )
    if checked.server is None or checked.reason is not None:
        return found
    asked = Asked(checked, given or checked.requests, task.attainment, task.search, task.arrivals)
    points: dict[int, SweepPoint] = {}
    report(Progress(0, len(task.cells), "simulating"))
    for place, point in _spread(asked, task):
        points[place] = point
        report(Progress(len(points), len(task.cells), "simulating"))
    ordered = with_front([points[place] for place in range(len(task.cells))], task.slo or ("ttft", "tpot"))
    notes = dict.fromkeys(note for cell in task.cells for note in predict.notes(checked.server, cell.change))
    return replace(found, points=ordered, notes=tuple(notes))


def _spread(asked: "Asked", task: Sweep) -> Iterator[tuple[int, SweepPoint]]:
    from taxbreak_vllm.workload.sweep import lost, point_of

    if task.ray is not None:
        from taxbreak_vllm.workload.ray_tasks import on_ray

        return on_ray(point_of, asked, task.cells, lost, address=task.ray, num_workers=task.num_workers)
    from taxbreak_vllm.workload.cores import on_cores

    return on_cores(partial(point_of, asked), task.cells, lost, num_workers=task.num_workers)


def _read_load(file: str, setup: Setup) -> Requests:
    length = int(setup.config["model_config"]["max_model_len"] or 0)
    return read_load(Path(file), hash_block_size=setup.hash_block_size, max_model_len=length)


def _one_engine(path: str) -> Recorded:
    engines = read_engines(Path(path))
    if len(engines) != 1:
        raise WorkloadError(f"{path}: {len(engines)} engines; a prediction is of the traffic of a single one")
    return engines[0]


if __name__ == "__main__":
    main()
