"""A request, and an output of one, as rows of integers: what happened when, `time.monotonic_ns`; 0 is "never".

Instants that vLLM stamps itself (`RequestState.stats`) are in `QUEUED` to `LAST_TOKEN`. A request may be several of the
engine's (choices, prompts): the first of them is queued, scheduled and has a token, the last of them has its last one.
"""

from enum import IntEnum, auto

UNKNOWN = -1


class _Columns(IntEnum):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count


class Column(_Columns):
    """The columns of a request, in order."""

    ARRIVED = auto()
    BODY = auto()  # its body was there
    RENDER0 = auto()
    RENDER1 = auto()
    SUBMIT0 = auto()  # checked for the engine
    SENT = auto()
    QUEUED = auto()
    SCHEDULED = auto()
    FIRST_TOKEN = auto()
    LAST_TOKEN = auto()
    FIRST_TAKEN = auto()  # the engine's message with its first output was taken up
    FIRST_PUT = auto()  # that output was given to whom waits for it
    FIRST_SEND0 = auto()
    FIRST_SEND1 = auto()
    LAST_TAKEN = auto()
    LAST_PUT = auto()
    LAST_SEND0 = auto()  # the first part of the answer after the last output
    END = auto()  # the last part of the answer was sent
    STATUS = auto()
    IS_STREAMED = auto()
    IS_FOLLOWED = auto()
    ENGINE = auto()
    NUMBER = auto()
    NUM_PROMPT_TOKENS = auto()
    NUM_OUTPUT_TOKENS = auto()
    WAIT_KV = auto()  # of the time up to `SCHEDULED`; UNKNOWN where the engine does not tell
    WAIT_ENCODER = auto()
    WAIT_GRAMMAR = auto()
    WAIT_REMOTE_KV = auto()


class Output(_Columns):
    """The columns of one output of a followed request, in order."""

    TOKEN = auto()  # the engine sent it
    TAKEN = auto()
    PUT = auto()
    SEND0 = auto()
    SEND1 = auto()
