"""What an engine's account says of a device that is known exactly, under vLLM's own engine, ahead of it and in step."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rig.logs import Logs

from taxbreak_vllm.iterations.rows import Column
from taxbreak_vllm.model.engine import EngineState, IdleFrom
from taxbreak_vllm.spool.spool import Spool

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(600)]

US, MS = 1000, 10**6
FAST = {"device": 20 * US, "launch": 5 * US}
SLOW = {"device": 8 * MS, "launch": 5 * US}
PLACES = ("schedule", "grammar", "update", "post", "worker")
DELAY_NS = 5 * MS
# A step that waits is slower itself, by some 30 µs. The way to a worker of its own, which wakes up late where the
# machine is busy, hides some of a delay: of a millisecond a tenth where nothing else runs, and half elsewhere.
OFF_RATIO = {"uni": {DELAY_NS: 0.1, 1 * MS: 0.1, 200 * US: 0.3}, "mp": {DELAY_NS: 0.15}}
SETTINGS = [
    (device, place, delay_ns)
    for device, delays in (("fast", OFF_RATIO["uni"]), ("slow", (DELAY_NS,)))
    for delay_ns in (0, *delays)
    for place in (PLACES if delay_ns else ("",))
]
_EDGE = 8  # steps of a load that begin or end it


@dataclass(frozen=True)
class Run(Logs):
    """What an engine and its device left behind."""

    scheduling: str
    executor: str

    @cached_property
    def state(self) -> EngineState:
        (state,) = Spool(self.folder / "spool", max_bytes=2**30, max_captures=1).engine_states()
        return state

    def places(self, setting):
        """Return the places of the iterations of a setting in `found`."""
        begun_ns, ended_ns = json.loads((self.folder / "periods").read_text())[SETTINGS.index(setting)]
        execute_ns = self.truth.execute_ns[self.steps]
        return np.flatnonzero((begun_ns < execute_ns) & (execute_ns < ended_ns))[_EDGE:-_EDGE]

    def exposed_ns(self, setting):
        """Return by part what of an iteration its device waited for, the median of the shorter half.

        The longer ones are those that other work on the machine held up.
        """
        steps = self.places(setting)
        steps = steps[np.argsort(self.found.total_ns[steps])[: len(steps) // 2]]
        return {part: float(np.median(spans_ns[steps])) for part, spans_ns in self.spans_ns().items()}

    def busy_ns(self, setting, part):
        """Return what an iteration took of the engine's thread for a part, the median step."""
        execute_ns = self.truth.execute_ns[self.steps]
        spans = pairwise(execute_ns[self.places(setting)].tolist())
        return float(np.median([self.turns.busy_ns(begun_ns, ended_ns)[part] for begun_ns, ended_ns in spans]))


@pytest.fixture(scope="module", params=["async uni", "async mp", "sync mp"])
def run(request, tmp_path_factory, run_offline, tiny_llama):
    scheduling, executor = request.param.split()
    folder = tmp_path_factory.mktemp("run")
    knobs = [
        (FAST if device == "fast" else SLOW) | ({place: delay_ns} if place else {})
        for device, place, delay_ns in SETTINGS
    ]
    rig = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": rig, "VLLM_PLUGINS": "taxbreak", "TAXBREAK_ENABLED": "false"}
    arguments = (tiny_llama, folder, scheduling, executor, json.dumps(knobs))
    run_offline("offline_simulated.py", folder, *arguments, **env)
    return Run(folder, scheduling, executor)


def test_every_step_is_joined_and_every_iteration_adds_up(run):
    found = run.found

    assert not run.turns.is_unjoined.any()
    assert found.step.tolist() == run.truth.number[:-1].tolist()
    assert found.is_from_device.all()
    assert (sum(found.parts_ns.values()) + found.worker_ns == found.total_ns).all()
    assert min(parts_ns.min() for parts_ns in found.parts_ns.values()) >= 0
    is_ahead = run.rows[:, Column.SCHEDULED] > run.rows[:, Column.UPDATED]
    assert is_ahead.mean() > 0.99 if run.scheduling == "async" else not is_ahead.any()


def test_the_device_was_idle_when_it_says_so(run, record_property):
    """Outside the calls, as is measured; within one it may run out of work too."""
    done = run.rows[run.rows[:, Column.WORKER_EXECUTE0] > 0]
    steps = np.searchsorted(run.truth.number, done[:, Column.UPDATED])
    _, execute_ns, idle_ns, sample_ns, sample_idle_ns, _ = (of[steps] for of in run.truth)
    for called_ns, true_ns, ended_ns, told_ns in (
        (execute_ns[1:], idle_ns[1:], done[:-1, Column.WORKER_SAMPLE1], done[1:, Column.DEVICE_IDLE]),
        (sample_ns, sample_idle_ns, done[:, Column.WORKER_EXECUTE1], done[:, Column.DEVICE_IDLE_SAMPLE]),
    ):
        outside_ns = np.minimum(true_ns, called_ns - ended_ns)
        off_ns = np.abs(told_ns - outside_ns)
        record_property("off_us", [float(value) / US for value in np.percentile(off_ns, (50, 90, 99))])
        record_property("sum_ratio", float(told_ns.sum() / outside_ns.sum()))
        assert np.median(off_ns) < 20 * US
        assert told_ns.sum() == pytest.approx(outside_ns.sum(), rel=0.02)


@pytest.mark.parametrize("delay_ns", [DELAY_NS, 1 * MS, 200 * US])
@pytest.mark.parametrize("place", PLACES)
def test_a_delay_that_the_device_waits_for_is_found_where_it_is(run, place, delay_ns, record_property):
    off_ratio = OFF_RATIO[run.executor].get(delay_ns)
    if off_ratio is None:
        pytest.skip("a worker of its own wakes up later than that")
    before, after = run.exposed_ns(("fast", "", 0)), run.exposed_ns(("fast", place, delay_ns))

    grown = {part: after[part] - before[part] for part in after}
    record_property("found_ratio", grown[place] / delay_ns)

    del grown["idle"], grown["total"]
    assert max(grown, key=grown.get) == place
    assert grown[place] == pytest.approx(delay_ns, rel=off_ratio)


@pytest.mark.parametrize("place", [place for place in PLACES if place != "worker"])
def test_a_delay_that_the_device_hides_is_busy_and_not_exposed(run, place, record_property):
    before, after = run.exposed_ns(("slow", "", 0)), run.exposed_ns(("slow", place, DELAY_NS))
    busy_ns = run.busy_ns(("slow", place, DELAY_NS), place) - run.busy_ns(("slow", "", 0), place)

    exposed_ns, idle_ns = (after[part] - before[part] for part in (place, "idle"))
    record_property("exposed_ratio", exposed_ns / DELAY_NS)
    record_property("idle_ratio", idle_ns / DELAY_NS)

    if run.scheduling == "async":
        assert max(exposed_ns, idle_ns) <= 0.05 * DELAY_NS
    elif place == "grammar":
        assert exposed_ns <= 0.05 * DELAY_NS
    else:
        assert exposed_ns == pytest.approx(DELAY_NS, rel=0.1)
    assert busy_ns == pytest.approx(DELAY_NS, rel=0.1)


def test_what_is_published_is_the_sum_of_it_all(run):
    state, found = run.state, run.found

    assert state.idle_from is IdleFrom.DEVICE_EVENTS
    assert state.works_ahead == (run.scheduling == "async")
    assert state.num_iterations == len(found.step)
    assert state.worker_ns == found.worker_ns.sum()
    assert dict(state.exposed_ns) | dict(state.between_ns) == {
        label: parts_ns.sum() for label, parts_ns in found.parts_ns.items()
    }
    assert state.iterations_ns == state.worker_ns + sum((state.exposed_ns | state.between_ns).values())
