"""A turn of an engine's loop as a row of integers: what its thread did when, `time.monotonic_ns`; 0 is "never".

A span is two neighbouring columns, `x0` and `x1`. What a worker did with a step comes back with its output: `worker`
columns are those of the step `updated`, which under asynchronous scheduling is an earlier one than `scheduled`.
"""

from enum import IntEnum, auto


class Column(IntEnum):
    """The columns of a row, in order."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count

    SCHEDULED = auto()  # the number of the step that was scheduled in this turn
    UPDATED = auto()  # the number of the step whose output was taken in
    INPUT0 = auto()
    IDLE0 = auto()
    IDLE1 = auto()
    INPUT1 = auto()
    SCHEDULE0 = auto()
    SCHEDULE1 = auto()
    EXECUTE0 = auto()
    EXECUTE_SENT = auto()  # 0 where the worker is in this process
    EXECUTE1 = auto()
    GRAMMAR0 = auto()
    GRAMMAR1 = auto()
    SAMPLE0 = auto()
    SAMPLE_SENT = auto()
    SAMPLE1 = auto()
    WAIT0 = auto()
    WAIT1 = auto()
    WAIT_AGAIN0 = auto()
    WAIT_AGAIN1 = auto()
    UPDATE0 = auto()
    UPDATE1 = auto()
    STEP1 = auto()
    END = auto()
    THREAD_CPU = auto()  # of the engine's thread up to then, `time.thread_time_ns`; stamped for windows alone
    WORKER_EXECUTE0 = auto()
    WORKER_EXECUTE1 = auto()
    WORKER_SAMPLE0 = auto()
    WORKER_SAMPLE1 = auto()
    WORKER_PHASE = auto()  # the step's place in `PHASES`; UNKNOWN where the worker has lost count of its steps
    DEVICE_IDLE = auto()  # how long the worker's device was, up to its first call; UNKNOWN where nothing tells, UNASKED
    DEVICE_IDLE_SAMPLE = auto()  # and between the two


NUM_COLUMNS = len(Column)

UNASKED = -2  # the device is asked about some steps, and was not about this one
UNKNOWN = -1  # also WORKER_EXECUTE0 of a step with tokens whose output bore no times
