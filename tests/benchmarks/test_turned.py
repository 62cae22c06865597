"""A real vLLM takes as much longer as it is turned to, while it is, and its compiled forward is the quicker one."""

from importlib.util import find_spec
from pathlib import Path
from statistics import median

import pytest
from turned import Child, Turn

from taxbreak_vllm.demo.models import write_tiny_llama

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.timeout(600),
    # not imported here: every run collects this file
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM's CPU build"),
]

LAYERS, LINEAR_A_LAYER = 4, 4


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """A tiny Llama with an eager and a compiled forward."""
    folder: Path = tmp_path_factory.mktemp("turned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(folder / "cache"))
        with Child(write_tiny_llama(folder / "model"), folder / "server", requests=2, compiled=True) as child:
            yield child


@pytest.mark.parametrize(
    ("turn", "least_ns"),
    [
        (Turn(linear_ns=200_000), LAYERS * LINEAR_A_LAYER * 200_000),
        (Turn(layer_ns=800_000), LAYERS * 800_000),
        (Turn(step_ns=3_000_000), 3_000_000),
        (Turn(wait_ns=3_000_000), 3_000_000),
    ],
    ids=["linear", "layer", "step", "wait"],
)
def test_a_delay_is_in_the_steps_that_are_turned_and_in_no_other(child, turn, least_ns):
    runs = child.alternate(Turn(), turn, 8)

    assert all(0.95 * least_ns <= added_ns for _, _, added_ns in runs)  # places that are not turned take a little too
    assert median(after - before for before, after, _ in runs) >= 0.8 * least_ns


def test_nothing_turned_adds_nothing(child):
    assert all(abs(added_ns) < 100_000 for _, _, added_ns in child.alternate(Turn(), Turn(), 8))


def test_tracing_slows_a_step_and_compiling_makes_it_quicker(child):
    for turn, is_longer in (Turn(traced=True), True), (Turn(compiled=True), False):
        runs = child.alternate(Turn(), turn, 15)

        assert (median(after / before for before, after, _ in runs) > 1) is is_longer
