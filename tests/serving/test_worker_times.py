"""A fault of ours while a worker's calls are timed reaches neither the worker nor its answers."""

from types import SimpleNamespace

import pytest

from taxbreak_vllm.serving.worker import install
from taxbreak_vllm.serving.worker_times import NUMBER, TIMES
from tests.serving.test_worker import FakeWatch, PlainWorker


class FaultyIdle:
    """Stands for a device's events, one of which fails from its nth time on."""

    def __init__(self, name, nth):
        self.name = name
        self.left = nth

    def _call(self, name, value):
        self.left -= name == self.name
        if self.left <= 0 and name == self.name:
            raise ZeroDivisionError("ours")
        return value

    untold = -2

    def begin_step(self):
        return self._call("begin_step", True)

    def end_other(self):
        self._call("end_other", None)

    def begin(self):
        return self._call("begin", None)

    def end(self):
        self._call("end", None)

    def read(self, gap):
        return self._call("read", 7)


class Closed:
    """A step that does not tell what is asked about it."""

    num_scheduled_tokens = ("a",)
    pending_structured_output_tokens = False

    def __getattr__(self, name):
        raise ZeroDivisionError(name)


class Outputs:
    """What the calls of a worker return, an object each time."""

    def __init__(self):
        self.given = []

    def __call__(self):
        self.given.append(SimpleNamespace(req_ids=["a"]))
        return self.given[-1]


def steps(device_idle, *, num=3, scheduled=None):
    """Run steps of a worker; return the calls that reached it, its outputs and what came back for them."""
    worker, outputs = PlainWorker(), Outputs()
    worker.outputs["sample_tokens"] = outputs
    watch = FakeWatch()
    watch.is_recording = False
    install(worker, open_watch=lambda worker: watch, open_device_idle=lambda worker: device_idle)
    returned = []
    for number in range(1, num + 1):
        plain = SimpleNamespace(num_scheduled_tokens={"a": 1}, **{NUMBER: number})
        assert worker.execute_model(plain if number == 1 else scheduled or plain) is None
        returned.append(worker.sample_tokens(None))
        worker.execute_dummy_batch()
    assert [id(output) for output in returned] == [id(output) for output in outputs.given]
    return [name for name, *_ in worker.calls], [getattr(output, TIMES, None) for output in returned]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["begin_step", "begin", "end", "end_other", "read"])
def test_whatever_of_ours_fails_every_call_is_made_once_and_every_answer_goes_back(name, nth):
    calls, _ = steps(None, num=6)

    made, times = steps(FaultyIdle(name, nth), num=6)

    assert made == calls
    assert None in times  # of these the engine counts that they did not come back


def test_a_step_that_cannot_be_asked_for_its_number_is_run_all_the_same():
    made, times = steps(None, scheduled=Closed())

    assert made == steps(None)[0]
    assert times[0] is not None
    assert times[1:] == [None, None]
