"""What is said of a step from the recording of three, against what was true of its iteration."""

from dataclasses import astuple, replace

import pytest

from rig.records import STEP
from rig.server import run
from rig.servers import device_bound, host_bound, random_server
from rig.trace import NEIGHBOUR, bracket, middle_of_three, to_json

TOLERANCE = 0.02


@pytest.fixture(scope="module")
def sample(analyze_sample):
    """Decompose the recording of a sample and return its step."""
    return lambda trace, server: analyze_sample(to_json(trace), server).steps[0]


def errors_of(step, true):
    """How far each figure is from the truth, as shares of the iteration; of HDBI as it is."""
    found = step.iteration
    true_engine = true.window_ns - sum(astuple(true.host_in_step))
    figures = {
        "window": (found.window_ns, true.window_ns),
        "active": (found.active_ns, true.active_ns),
        "other": (found.other_active_ns, true.other_active_ns),
        "own": (step.device.active_ns, true.device_ns),
        "engine": (sum(part.busy_ns for part in found.engine.values()), true_engine),
        "orchestration": (step.taxes.orchestration_ns, true.taxes.orchestration_ns),
    }
    figures |= {f"idle {c}": (found.idle.get(c, 0), true.idle_by_cause.get(c, 0)) for c in (*found.idle, "edge")}
    true_exposed, true_host = true.exposed_in_step, true.host_in_step
    figures |= {f"exposed {n}": (getattr(step.exposed, n), getattr(true_exposed, n)) for n in _fields(true_exposed)}
    figures |= {f"host {n}": (getattr(step.host, n), getattr(true_host, n)) for n in _fields(true_host)}
    errors = {name: (said - real) / true.window_ns for name, (said, real) in figures.items()}
    return errors | {"hdbi": (step.hdbi or 0) - (true.hdbi or 0)}


def _fields(value):
    return value.__dataclass_fields__


def wrong(errors):
    return {name: error for name, error in errors.items() if abs(error) > TOLERANCE}


@pytest.mark.parametrize("is_whole", [True, False], ids=["three whole steps", "the third has but begun"])
def test_the_sample_of_any_server_is_true_of_its_iteration(sample, is_whole, seeds):
    for seed in seeds:
        server = random_server(seed)
        it = run(server)
        for middle in range(1, len(it.windows) - 1):
            trace, true = middle_of_three(it, middle, is_whole=is_whole)

            assert wrong(errors_of(sample(trace, server), true)) == {}, seed


def test_the_device_bound_server_is_that_in_its_sample(sample):
    it = run(device_bound())
    trace, true = middle_of_three(it, 4)

    step = sample(trace, it.server)

    assert step.hdbi == pytest.approx(0.85, abs=0.02) == true.hdbi
    assert step.device.idle_ns == 0


def test_the_host_bound_server_shows_the_4_ms_for_which_its_device_waits(sample):
    it = run(host_bound())
    trace, true = middle_of_three(it, 4)

    step = sample(trace, it.server)

    waits_ns = step.iteration.idle["host"] + step.iteration.idle["engine"]
    assert waits_ns == pytest.approx(4_040_000, rel=0.02) == sum(astuple(true.exposed))


@pytest.mark.parametrize("beside", ["before", "after", "none"])
def test_a_sample_without_a_step_beside_it_is_true_or_says_that_it_cannot_tell(sample, beside, seeds):
    for seed in seeds:
        server = random_server(seed)
        it = run(server)
        for middle in range(1, len(it.windows) - 1):
            _, true = middle_of_three(it, middle)
            step = sample(three_or_fewer(it, middle, beside), server)

            if server.steps_ahead:
                assert (step.iteration, step.hdbi, step.device.idle_ns) == (None, None, None)
                assert "idle time, exposed tax and HDBI are null" in step.notes[0]
            else:
                assert abs((step.hdbi or 0) - (true.hdbi or 0)) <= TOLERANCE


def three_or_fewer(it, middle, beside):
    """The recording of a step with the one before it alone, the one after it alone, or neither."""
    first, last = middle - (beside == "before"), middle + (beside == "after")
    names = {f"{STEP}{middle - 1}": f"{NEIGHBOUR}before", f"{STEP}{middle + 1}": f"{NEIGHBOUR}after"}
    trace = bracket(it, first, last)
    return replace(trace, spans=tuple(replace(span, name=names.get(span.name, span.name)) for span in trace.spans))
