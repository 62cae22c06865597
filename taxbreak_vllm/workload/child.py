"""The process that imports vLLM: one task as JSON on standard input, its answer as JSON on standard output.

Nothing else is written there: what vLLM prints goes to standard error.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from taxbreak_vllm.machine.parent import die_with_parent
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.workload import Identities
from taxbreak_vllm.workload.recording import read_engines
from taxbreak_vllm.workload.task import Check, Failure, Task


def answer(task: Task) -> Identities:
    """Do a task; raises TaxbreakError where it cannot be done."""
    from taxbreak_vllm.workload.identity import check_identity

    match task:
        case Check():
            found = []
            for engine in read_engines(Path(task.path)):
                begun_ns = time.process_time_ns()
                identity = check_identity(engine)
                found.append(replace(identity, elapsed_ns=time.process_time_ns() - begun_ns))
            return Identities(engines=tuple(found))


def main() -> None:
    """Do the task of standard input; exit 3 with a `Failure` where that is refused."""
    die_with_parent()
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


if __name__ == "__main__":
    main()
