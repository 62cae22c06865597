"""The device tells how long it was idle before a call, without being waited for, and no fault of its own gets out."""

import inspect
import random
import threading
from types import SimpleNamespace

import pytest
from rig.device import Device

from taxbreak_vllm.iterations.rows import UNASKED, UNKNOWN
from taxbreak_vllm.serving.device_idle import BURST, ONE_IN, DeviceIdle, open_device_idle, steps_between
from taxbreak_vllm.serving.worker_times import NUMBER, TIMES, StepTimes

US = 1000


class Clock:
    def __init__(self):
        self.ns = 10**15

    def __call__(self):
        return self.ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def device(clock):
    return Device(clock)


@pytest.fixture
def idle(device):
    """Asked about every step."""
    return DeviceIdle(device.event, steps_between=lambda: 0)


def call(idle, device, clock, work_ns):
    """One call: 10 µs of the host, in which it launches work."""
    gap = idle.begin()
    device.launch(work_ns)
    clock.ns += 10 * US
    idle.end()
    return gap


def test_a_device_that_waits_for_its_host_is_idle_until_the_call_begins(idle, device, clock):
    call(idle, device, clock, 100 * US)
    clock.ns += 390 * US

    gap = call(idle, device, clock, 100 * US)

    assert idle.read(gap) == 300 * US


def test_a_device_that_is_still_at_work_is_never_idle(idle, device, clock):
    call(idle, device, clock, 500 * US)
    gap = call(idle, device, clock, 500 * US)

    assert idle.read(gap) == UNKNOWN  # it has not come to the second call
    clock.ns += 1000 * US
    assert idle.read(gap) == 0


def test_what_was_before_the_first_call_is_unknown(idle, device, clock):
    assert idle.read(call(idle, device, clock, 0)) == UNASKED


def test_a_call_that_never_ended_leaves_the_time_after_it_unknown(idle, device, clock):
    call(idle, device, clock, 0)
    idle.begin()

    assert idle.read(call(idle, device, clock, 0)) == UNASKED
    assert idle.read(call(idle, device, clock, 0)) == 0


@pytest.mark.parametrize("pause_s", [1, 60, 3600])
def test_a_long_pause_loses_no_more_than_a_float_of_32_bits_does(idle, device, clock, pause_s):
    call(idle, device, clock, 0)
    pause_ns = pause_s * 10**9 + 123_457
    clock.ns += pause_ns

    found = idle.read(call(idle, device, clock, 0))

    assert abs(found - pause_ns) <= 1 + pause_ns * 6e-8


def test_a_gap_whose_events_may_be_in_use_again_is_unknown(idle, device, clock):
    call(idle, device, clock, 0)
    gap = call(idle, device, clock, 0)
    for _ in range(62):
        call(idle, device, clock, 0)
    assert idle.read(gap) == 0

    call(idle, device, clock, 0)

    assert idle.read(gap) == UNKNOWN


def test_gaps_may_be_read_while_calls_go_on(idle, device, clock):
    gaps, found = [call(idle, device, clock, 0)], []
    reader = threading.Thread(target=lambda: found.extend(idle.read(gap) for gap in gaps[1:]))
    gaps += [call(idle, device, clock, 0) for _ in range(8)]
    reader.start()
    for _ in range(400):
        call(idle, device, clock, 0)
    reader.join()

    assert set(found) <= {0, UNKNOWN}
    assert len(found) == 8


def test_nothing_is_recorded_while_the_stream_is_captured_into_a_graph(device, clock):
    captures = [False]
    idle = DeviceIdle(device.event, is_capturing=lambda: captures[0], steps_between=lambda: 0)
    call(idle, device, clock, 0)
    captures[0] = True
    during = call(idle, device, clock, 0), call(idle, device, clock, 0)
    captures[0] = False
    behind = call(idle, device, clock, 0)

    assert device.num_events_recorded == 2  # around the first
    assert [idle.read(gap) for gap in (*during, behind)] == [UNASKED] * 3
    assert idle.read(call(idle, device, clock, 0)) == 0


class Broken:
    """An event one of whose calls raises, as torch's may."""

    def __init__(self, name):
        self._name = name

    def _call(self, name, answer):
        if name == self._name:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return answer

    def record(self):
        self._call("record", None)

    def query(self):
        return self._call("query", True)

    def elapsed_time(self, end):
        return self._call("elapsed_time", 1.0)


@pytest.mark.parametrize("name", ["record", "query", "elapsed_time"])
def test_a_fault_of_the_device_is_told_once_and_nothing_is_known_from_then_on(name, caplog):
    idle = DeviceIdle(lambda: Broken(name))

    for _ in range(3):
        idle.begin()
        idle.end()
        gap = idle.begin()
        idle.read(gap)
        assert idle.read(gap) == UNKNOWN
        assert not idle.begin_step()

    assert [record.message for record in caplog.records if "no longer tells when it is idle" in record.message] == [
        caplog.records[0].message
    ]


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_torch_has_the_calls_that_are_used_of_its_events(kind):
    torch = pytest.importorskip("torch", reason="events are torch's")
    event = torch.get_device_module(kind).Event

    assert "enable_timing" in inspect.signature(event.__new__).parameters
    assert list(inspect.signature(event.record).parameters) == ["self", "stream"]
    assert list(inspect.signature(event.query).parameters) == ["self"]
    assert list(inspect.signature(event.elapsed_time).parameters) == ["self", "end_event"]


@pytest.mark.parametrize("kind", ["cpu", ""])
def test_a_device_that_nothing_is_launched_to_has_no_events(kind):
    assert open_device_idle(SimpleNamespace(device=SimpleNamespace(type=kind))) is None


@pytest.fixture
def times(idle):
    return StepTimes(idle)


def scheduled(number, num_tokens=1):
    return SimpleNamespace(num_scheduled_tokens={"a": num_tokens} if num_tokens else {}, **{NUMBER: number})


class Later:
    """What an asynchronous step returns."""

    def __init__(self):
        self.output = SimpleNamespace(req_ids=["a"])

    def get_output(self):
        return self.output


def step(times, device, clock, number, work_ns=0, output=None):
    """A step of an asynchronous engine, 100 µs between its calls; each launches half of its work."""
    output = output or Later()
    times.begin_execute(scheduled(number), 0)
    device.launch(work_ns // 2)
    times.end_execute(None, "server")
    clock.ns += 100 * US
    times.begin_sample()
    device.launch(work_ns // 2)
    times.end_sample(output, "server")
    return output


def test_the_idle_times_of_a_step_come_with_its_output_once_that_is_fetched(times, device, clock):
    step(times, device, clock, 1)
    clock.ns += 300 * US
    later = step(times, device, clock, 2, 60 * US)

    fetched = later.get_output()

    assert getattr(fetched, TIMES)[:2] == ("server", 2)
    assert getattr(fetched, TIMES)[7:] == (300 * US, 70 * US)


def test_a_step_without_tokens_is_no_end_of_a_pause(times, device, clock):
    step(times, device, clock, 1)
    clock.ns += 300 * US
    times.begin_execute(scheduled(2, num_tokens=0), 0)
    times.end_execute(SimpleNamespace(req_ids=[]), "server")
    clock.ns += 300 * US

    fetched = step(times, device, clock, 3).get_output()

    assert getattr(fetched, TIMES)[7] == 600 * US


def test_a_step_that_nobody_numbers_records_no_event(times, device, clock):
    fetched = step(times, device, clock, 0).get_output()

    assert not hasattr(fetched, TIMES)
    assert device.num_events_recorded == 0


def test_a_step_that_samples_nothing_ends_with_its_first_call(times, device, clock):
    """As those of pooling models."""
    step(times, device, clock, 1)
    clock.ns += 300 * US
    output = SimpleNamespace(req_ids=["a"])
    times.begin_execute(scheduled(2), 0)
    times.end_execute(output, "server")

    assert getattr(output, TIMES)[7] == 300 * US


def test_the_phase_of_a_step_goes_back_with_its_times(times):
    output = SimpleNamespace(req_ids=["a"])
    times.begin_execute(scheduled(7), 3)
    times.end_execute(None, "server")
    times.begin_sample()
    times.end_sample(output, "server")

    assert getattr(output, TIMES)[6] == 3


def test_other_work_ends_what_was_measured(times, device, clock):
    """As a dummy batch of an engine whose siblings have requests."""
    step(times, device, clock, 1)
    clock.ns += 300 * US
    device.launch(50 * US)
    times.end_other()
    clock.ns += 70 * US

    assert getattr(step(times, device, clock, 2).get_output(), TIMES)[7] == 20 * US


def asked(times, device, clock, num):
    """Run so many steps, 300 µs apart; return what came of each: idle before its calls."""
    found = []
    for number in range(1, num + 1):
        found.append(getattr(step(times, device, clock, number).get_output(), TIMES)[7:])
        clock.ns += 300 * US
    return found


def test_the_device_is_asked_about_bursts_of_iterations_and_in_between_of_none(device, clock):
    passes = iter((3, 5, 1000))
    found = asked(StepTimes(DeviceIdle(device.event, steps_between=lambda: next(passes))), device, clock, 40)

    burst = [(UNASKED, 100 * US), *[(300 * US, 100 * US)] * (BURST - 1), (300 * US, UNASKED)]
    between = [(UNASKED, UNASKED)]
    assert found == between * 3 + burst + between * 5 + burst + between * (40 - 8 - 2 * len(burst))
    assert device.num_events_recorded == 2 * 4 * BURST


def test_every_iteration_is_as_likely_to_be_asked_about_as_any_other(device, clock, monkeypatch):
    random.seed(7)
    num = 40_000
    idle = DeviceIdle(device.event)
    is_framed = [idle.begin_step() for _ in range(num)]

    of_place = [sum(is_framed[place::64]) / (num / 64) for place in range(64)]
    expected = (BURST + 1) / (BURST * ONE_IN)
    assert sum(is_framed) / num == pytest.approx(expected, rel=0.1)
    assert max(of_place) < 2 * expected
    assert min(of_place) > expected / 2
    assert 0 <= min(steps_between() for _ in range(1000)) < 10


def test_other_work_between_two_bursts_records_no_event(device, clock):
    times = StepTimes(DeviceIdle(device.event, steps_between=lambda: 10))
    for number in range(1, 10):
        step(times, device, clock, number)
        times.end_other()

    assert device.num_events_recorded == 0


def test_a_device_whose_events_broke_tells_nothing_between_bursts_either(device, clock):
    passes = iter((0, 100))
    idle = DeviceIdle(lambda: Broken("query"), steps_between=lambda: next(passes))

    found = asked(StepTimes(idle), device, clock, 20)

    assert found[1:] == [(UNKNOWN, UNKNOWN)] * 19
