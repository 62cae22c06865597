"""ΔFT as stacks sums to the breakdown's ΔFT, total and exposed, to the nanosecond, and names what it was."""

import json
from pathlib import Path

import pytest
from rig.server import run
from rig.servers import host_bound, random_server
from rig.trace import middle_of_three, sample_info, to_json

from taxbreak_vllm.insight.stacks import host_stacks
from taxbreak_vllm.insight.stretches import ChosenSteps
from taxbreak_vllm.model.breakdown import Attribution
from taxbreak_vllm.model.stacks import REST
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.timeline import HostClass

SERVING = Path(__file__).parents[1] / "data" / "serving.json"


def folded(stacks, ns=None):
    """Return {names from the phase to the innermost frame, joined: ns of its own}, frames of nothing aside."""
    found = {}
    for frame, own_ns in enumerate(stacks.delta_ft_ns if ns is None else ns):
        names = [stacks.names[stacks.name[i]] for i in stacks.stack(frame)]
        if own_ns:
            found[" > ".join(reversed(names))] = own_ns
    return found


def assert_sums(recording, stacks, steps):
    assert sum(stacks.delta_ft_ns) == sum(step.taxes.delta_ft_ns for step in steps)
    exposed = [step.exposed.delta_ft_ns for step in steps]
    assert (stacks.exposed_ns is None) == (None in exposed)
    assert stacks.exposed_ns is None or sum(stacks.exposed_ns) == sum(exposed)
    assert min(stacks.delta_ft_ns, default=0) >= 0


def python(name, at, duration, *, thread=1):
    return {"ph": "X", "cat": "python_function", "name": name, "pid": 4000, "tid": thread, "ts": at, "dur": duration}


@pytest.fixture
def write(tmp_path, reference):
    """Write events of `reference`, in µs, with Python functions beside them."""

    def write(*events, functions=()):
        document = json.loads(reference.to_json(events))
        document["traceEvents"] += functions
        path = tmp_path / "trace.json"
        path.write_text(json.dumps(document))
        return path

    return write


def test_every_frame_of_a_real_trace_is_part_of_the_sum(trace_path):
    with Recording.open(trace_path, with_frames=True) as recording:
        breakdown = recording.breakdown

        assert_sums(recording, host_stacks(recording), [breakdown.total])
        for number, step in enumerate(breakdown.steps[:3]):
            assert_sums(recording, host_stacks(recording, [number]), [step])
        every = range(len(breakdown.steps))
        assert_sums(recording, host_stacks(recording, every), breakdown.steps)


def test_no_stretch_of_a_real_trace_is_longer_or_shorter_than_what_it_stands_for(trace_path):
    """So that nothing has to be put right in proportion."""
    with Recording.open(trace_path) as recording:
        stretches, amounts_ns = ChosenSteps.of(recording, None).delta_ft()
        by_class = recording.measured.partition.between(stretches.start, stretches.end)

    assert by_class[[HostClass.PYTHON, HostClass.DISPATCH]].sum() == amounts_ns.sum()


def test_reading_the_functions_changes_no_figure(trace_path):
    with Recording.open(trace_path) as without, Recording.open(trace_path, with_frames=True) as recording:
        assert recording.breakdown == without.breakdown


def test_python_time_has_the_names_of_its_functions(write, reference):
    """By eye: 0-10 forward, 10-14 view within it, 14-20 forward, the op 20-50 with its launch 40-50 in it."""
    path = write(
        reference.step("s", 0, 100_000),
        reference.op("aten::mul", 20_000, 60_000),
        reference.op("aten::copy_", 30_000, 50_000),
        reference.call("cudaLaunchKernel", 40_000, 50_000, 1),
        reference.kernel("k", 55_000, 70_000, 1),
        functions=[
            python("main.py(1): <module>", -5, 500),
            python("model.py(7): forward", 0, 90),
            python("<built-in method view of Tensor object at 0x7f00beef>", 10, 4),
        ],
    )

    with Recording.open(path, with_frames=True) as recording:
        stacks = host_stacks(recording)

    forward = "steps > model.py(7): forward"
    assert folded(stacks) == {
        forward: 16_000,
        f"{forward} > <built-in method view of Tensor object>": 4_000,
        f"{forward} > aten::mul": 10_000,
        f"{forward} > aten::mul > aten::copy_": 10_000,
    }
    assert stacks.has_python


def test_without_functions_python_is_one_frame_beside_the_ops(write, reference):
    path = write(
        reference.step("s", 0, 100_000),
        reference.op("aten::mul", 20_000, 60_000),
        reference.call("cudaLaunchKernel", 40_000, 50_000, 1),
        reference.kernel("k", 55_000, 70_000, 1),
    )

    with Recording.open(path, with_frames=True) as recording:
        stacks = host_stacks(recording)

    assert folded(stacks) == {"steps > [python]": 20_000, "steps > aten::mul": 20_000}
    assert not stacks.has_python


def test_exposed_frames_are_those_the_device_waited_for(write, reference):
    """The device idles from 40 to 70; the second launch begins at 66, after 6 µs of Python and 10 µs of an op."""
    path = write(
        reference.step("s", 0, 100_000),
        reference.op("a", 0, 20_000),
        reference.call("cudaLaunchKernel", 10_000, 12_000, 1),
        reference.kernel("k", 12_000, 50_000, 1),
        reference.op("b", 56_000, 90_000),
        reference.call("cudaLaunchKernel", 66_000, 68_000, 2),
        reference.kernel("k", 70_000, 80_000, 2),
    )

    with Recording.open(path) as recording:
        stacks = host_stacks(recording)

    assert folded(stacks, stacks.exposed_ns) == {"steps > [python]": 6_000, "steps > b": 10_000}


def test_phases_stand_apart_and_know_how_many_steps_they_are():
    with Recording.open(SERVING) as recording:
        stacks, second = host_stacks(recording), host_stacks(recording, [1])

    tops = {name.split(" > ")[0] for name in folded(stacks)}
    assert tops == {"prefill", "decode"} == set(stacks.num_steps)
    assert stacks.num_steps == {"prefill": 1, "decode": 3}
    assert second.num_steps == {"decode": 1}


@pytest.mark.parametrize("terms", [Terms(op_cost_ns=900), Terms(attribution=Attribution.PAPER)], ids=["cost", "paper"])
def test_other_terms_are_told_in_proportion_and_exactly(real_trace, terms):
    with Recording.open(real_trace("h100_hf_bert-small_infer"), terms, with_frames=True) as recording:
        stacks = host_stacks(recording)

        assert sum(stacks.delta_ft_ns) == recording.breakdown.total.taxes.delta_ft_ns
        assert min(stacks.delta_ft_ns) == 0


@pytest.mark.parametrize("seed", [None, 3, 7, 11])
def test_a_live_sample_leaves_the_engine_out(tmp_path, rules, seed):
    server = host_bound() if seed is None else random_server(seed)
    it = run(server)
    path = tmp_path / "trace.json"
    path.write_text(to_json(middle_of_three(it, len(it.windows) // 2)[0]))
    with Recording.open(path, with_frames=True) as plain:
        recording = Recording(plain.events, Terms(rules=rules, floor_ns=server.floor_ns), info=sample_info(server))
        (step,) = recording.breakdown.steps

        stacks = host_stacks(recording)

        assert step.iteration is not None
        assert_sums(recording, stacks, [step])
        assert set(stacks.num_steps) == {"decode"}


def test_a_recording_on_the_cpu_names_the_functions_of_its_python(tmp_path):
    torch = pytest.importorskip("torch")

    def slow_python(x):
        for _ in range(200):
            x = x + 1
        return x

    layer = torch.nn.Linear(64, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True) as profile:
        for _ in range(3):
            layer(slow_python(torch.ones(8, 64)))
    path = tmp_path / "cpu.json"
    profile.export_chrome_trace(str(path))

    with Recording.open(path, with_frames=True) as recording:
        stacks = host_stacks(recording)
        assert_sums(recording, stacks, [recording.breakdown.total])

    in_slow = sum(ns for names, ns in folded(stacks).items() if "slow_python" in names)
    assert in_slow > 0.2 * sum(stacks.delta_ft_ns)
    assert any(name.startswith("nn.Module: Linear") for name in stacks.names)


def test_what_is_withheld_has_no_frame_and_says_why(write, reference):
    calls = [reference.call("cudaLaunchKernel", at * 1000, at * 1000 + 500, at) for at in range(1, 9)]
    path = write(reference.op("a", 0, 20_000), *calls, reference.kernel("k", 2_000, 3_000, 1))

    with Recording.open(path) as recording:
        stacks = host_stacks(recording)

    assert stacks.parent == ()
    assert "left no activity" in stacks.reason


def test_small_frames_are_put_together_and_nothing_is_lost(real_trace):
    with Recording.open(real_trace("h100_hf_bert-small_infer"), with_frames=True) as recording:
        whole = host_stacks(recording)

    trimmed = whole.trimmed(0.02)

    assert len(trimmed.parent) < len(whole.parent) / 2
    assert REST in trimmed.names
    assert sum(trimmed.delta_ft_ns) == sum(whole.delta_ft_ns)
    assert sum(trimmed.exposed_ns) == sum(whole.exposed_ns)
    assert all(parent < i for i, parent in enumerate(trimmed.parent))
    assert {trimmed.names[i] for i in trimmed.name} == set(trimmed.names)
