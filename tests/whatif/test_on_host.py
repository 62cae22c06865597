"""What-if of recordings of the CPU backend: one recorded by a real vLLM, and some made by hand whose truth is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Baseline, Environment, Outcome, Spread
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.whatif import on_host
from taxbreak_vllm.whatif.asked import asked
from taxbreak_vllm.whatif.compiled import Forward
from taxbreak_vllm.whatif.on_host import MISSED
from taxbreak_vllm.whatif.replay import replay

STEP = Path(__file__).parents[1] / "data" / "cpu_decode"  # a decode step of the demo's tiny Llama, four requests


@pytest.fixture(scope="module")
def recorded():
    """A decode step of a real vLLM."""
    with Recording.open(STEP, with_calls=True) as recording:
        yield recording


@pytest.fixture
def made(read, rules, reference):
    """Record ops of a thread within a step, as the worker does whose plain steps are told."""

    def made(*ops, until=1000, plain_ns=None, op_cost_ns=0):
        events = [reference.step("x", 0, until), reference.neighbour("after", until, until + 1)]
        info = StepInfo(
            step_id="x",
            step_index=1,
            server=Server(server_id="s", device_type="cpu"),
            phase=Phase.DECODE,
            batch=Batch(requests=1, prompt_tokens=0, output_tokens=1),
            graph_mode=GraphMode.NONE,
            started_unix_ns=0,
            window_ns=until,
            plain_window_ns=plain_ns,
            num_plain=64,
            op_cost_ns=op_cost_ns,
            iteration_ns=until,
            plain_iteration_ns=plain_ns,
        )
        found = [reference.op(name, start, end) for name, start, end in ops]
        return Recording(read([*events, *found]), Terms(rules=rules), info=info)

    return made


def step(recording, **change):
    answer = asked(**change).of(recording)
    assert answer.refused is None, answer.refused
    return answer.steps[0]


def test_a_step_of_a_real_server_is_given_back_to_the_nanosecond(recorded):
    model = on_host.build(recorded.measured, recorded.shown_windows)

    assert model.graph.num_backward == 0
    assert np.array_equal(replay(model.graph), model.graph.at_ns)
    same = step(recorded)
    assert same.predicted_ns == same.observed_ns
    assert same.plain_predicted_ns == same.plain_ns == recorded.info.plain_iteration_ns


def test_all_gates_of_a_real_step_are_measured_and_pass(recorded):
    gates = {gate.name: gate for gate in asked(host=["2"]).of(recorded).gates}

    assert {"reproduction", "translation", "unexplained", "calibration"} <= set(gates)
    assert all(gate.passes for gate in gates.values())


@pytest.mark.parametrize("option", ["host", "kernels"])
def test_longer_work_never_makes_a_real_step_shorter(recorded, option):
    found = [step(recorded, **{option: [factor]}) for factor in ("0", "0.5", "0.9", "1.1", "2", "5")]

    for name in ("predicted_ns", "plain_predicted_ns", "plain_low_ns", "plain_high_ns"):
        times = [getattr(each, name) for each in found]
        assert times == sorted(times)
        assert len(set(times)) == len(times)


def test_the_bounds_are_all_that_is_computed_and_all_the_rest(recorded):
    same = step(recorded)

    assert step(recorded, host=["0"]).predicted_ns == same.host_free_ns == recorded.breakdown.steps[0].device.active_ns
    assert step(recorded, kernels=["0"]).predicted_ns == same.kernels_free_ns == same.observed_ns - same.host_free_ns


def test_an_interval_holds_its_prediction(recorded):
    for change in ({"host": ["python=0.5..3"]}, {"kernels": ["gemm=0.2"]}, {"host": ["0.7"], "kernels": ["2"]}):
        found = step(recorded, **change)
        assert found.low_ns <= found.predicted_ns <= found.high_ns
        assert found.plain_low_ns <= found.plain_predicted_ns <= found.plain_high_ns


def test_python_between_ops_and_their_compute_have_a_factor_each(made):
    ops = ("aten::mm", 100, 400), ("aten::add", 500, 700)

    assert step(made(*ops), host=["python=2"]).predicted_ns == 1000 + 500
    assert step(made(*ops), host=["dispatch=2"]).predicted_ns == 1000
    assert step(made(*ops), kernels=["gemm=0.5"]).predicted_ns == 1000 - 150
    assert step(made(*ops), host=["python=3"], kernels=["2"]).predicted_ns == 3 * 500 + 2 * 500


def test_an_op_that_computes_nothing_tells_what_dispatch_takes(made):
    ops = ("aten::view", 0, 50), ("aten::mm", 100, 400)

    assert step(made(*ops), host=["dispatch=2"]).predicted_ns == 1000 + 50 + 50
    assert step(made(*ops), kernels=["0"]).predicted_ns == 1000 - 250


def test_what_the_profiler_adds_to_an_op_is_no_work_of_the_plain_host(made):
    ops = [("aten::mm", 100, 400), ("aten::mm", 500, 700)]
    recording = made(*ops, plain_ns=900, op_cost_ns=50)

    assert step(recording, host=["2"]).plain_predicted_ns == 900 + 400
    assert step(recording, kernels=["2"]).plain_predicted_ns == 900 + 500
    assert step(recording, host=["0"]).plain_predicted_ns == 500


def test_whether_recording_lengthens_each_op_or_all_of_the_host_the_interval_holds_both(made):
    views = [("aten::view", at, at + 20) for at in (0, 20, 40, 60)]
    found = step(made(*views, ("aten::mm", 100, 600), plain_ns=900, op_cost_ns=4), host=["dispatch=2"])

    assert found.plain_predicted_ns == 900 + 81  # 420 of the host's 520 stay, of its dispatch too
    least_ns = 900 + 17  # 20 for each of 5 ops: a sixth stays of what is around them
    wide_ns = MISSED.ns(900, 900 + 81)
    assert (found.plain_low_ns, found.plain_high_ns) == (round(least_ns - wide_ns), round(900 + 81 + wide_ns))


def test_an_interval_is_as_wide_as_answers_missed_and_wider_for_a_larger_change(made):
    recording = made(("aten::mm", 0, 500), plain_ns=800)
    same, more = step(recording), step(recording, host=["2"])

    for found, wide_ns in (same, MISSED.ns(800, 800)), (more, MISSED.ns(800, 1100)):
        assert found.plain_low_ns == round(found.plain_predicted_ns - wide_ns)
        assert found.plain_high_ns == round(found.plain_predicted_ns + wide_ns)
    assert more.plain_high_ns - more.plain_low_ns > same.plain_high_ns - same.plain_low_ns > 0


def test_a_step_that_recording_made_another_one_is_no_basis(made):
    answer = asked(host=["2"]).of(made(("aten::mm", 0, 500), plain_ns=400))

    assert "calibration is 150.0%, at most 100% passes" in answer.refused
    assert answer.steps == ()


def test_without_plain_steps_nothing_is_said_of_them(made):
    found = step(made(("aten::mm", 0, 500)), host=["2"])

    assert found.plain_ns is found.plain_predicted_ns is found.plain_low_ns is found.plain_high_ns is None


def test_work_of_another_thread_is_no_basis(read, rules, reference):
    own = [reference.op("aten::mm", at, at + 100_000) for at in (0, 200_000, 400_000)]
    events = [*own, reference.op("aten::mm", 0, 300_000, thread=2)]
    answer = asked(host=["2"]).of(Recording(read(events), Terms(rules=rules)))

    assert "translation" in answer.refused


@pytest.mark.parametrize(
    "change",
    [{"graph": "full"}, {"fuse": ["mm,add"]}, {"floor_us": 2.0}, {"no_sync": ["Device"]}, {"is_async": True}],
)
def test_what_needs_a_launch_path_is_refused_by_its_name(recorded, change):
    answer = asked(**change).of(recorded)

    assert answer.refused.startswith(answer.change.split()[0] + ": its ops compute on the host")


def test_compiling_leaves_library_calls_and_attention_and_takes_out_what_lies_between(recorded):
    eager, found = step(recorded), step(recorded, compiled=True)

    assert found.predicted_ns < 0.8 * eager.observed_ns
    kept = Forward.of(recorded)
    outside_ns = eager.observed_ns - (kept.end_ns - kept.start_ns)
    least_ns = 0.7 * outside_ns + (kept.kept_end - kept.kept_start).sum()
    wide_ns = MISSED.ns(eager.observed_ns, found.predicted_ns)
    assert least_ns - wide_ns < found.low_ns < eager.observed_ns / 2
    assert found.low_ns < found.predicted_ns < found.high_ns < eager.observed_ns + wide_ns
    assert any("no recording" in note for note in asked(compiled=True).of(recorded).notes)


def test_a_forward_has_each_library_and_attention_call_of_its_layers(recorded):
    assert len(Forward.of(recorded).kept_start) == 4 * (4 + 2)  # four gemms, the KV cache and attention a layer


def test_what_is_no_model_cannot_be_compiled(made):
    answer = asked(compiled=True).of(made(("aten::mm", 0, 500)))

    assert "forward can be told" in answer.refused


def test_what_is_compiled_already_cannot_be(made):
    answer = asked(compiled=True).of(made(("## Call CompiledFxGraph None ##", 0, 600), ("aten::mm", 100, 500)))

    assert "compiled already" in answer.refused


HERE = Environment(device_type="cpu", device_name="AMD EPYC", torch="2.13.0+cpu")


def replayed(recording, active_ns, *, but=()):
    """Return baselines of all ops of a recording, but some."""
    for signature, _ in recording.signatures():
        op = signature.calls[0].op
        if op not in but:
            key, active = signature.keys[0], Spread(active_ns, 0, 10)
            yield Baseline(signature=key, op=op, outcome=Outcome.MEASURED, active=active)


@pytest.fixture
def store(recorded, tmp_path):
    """Keep a time of each op of the real step in a store."""
    stores = []

    def store(active_ns, *, place=HERE, **which):
        stores.append(Baselines(tmp_path / f"{len(stores)}.sqlite3"))
        stores[-1].put(place, replayed(recorded, active_ns, **which))
        return stores[-1]

    yield store
    for each in stores:
        each.__exit__(None, None, None)


def test_each_op_takes_what_it_took_where_it_was_replayed(recorded, store):
    found = step(recorded, like=store(1_000))

    assert found.predicted_ns == found.kernels_free_ns + 1_000 * len(recorded.measured.activities.row)


def test_a_store_of_another_device_will_do(recorded, store):
    elsewhere = store(1_000, place=replace(HERE, device_name="another"))

    assert step(recorded, like=elsewhere).predicted_ns == step(recorded, like=store(1_000)).predicted_ns


def test_beside_the_recordings_own_replays_only_the_difference_counts(store):
    one, half = store(2_000), store(1_000)
    with Recording.open(STEP, Terms(baselines=one)) as recording:
        found = step(recording, like=half)
        computed_ns = found.observed_ns - found.kernels_free_ns

        assert step(recording, like=one).predicted_ns == found.observed_ns
    assert found.kernels_free_ns + computed_ns / 2 >= found.low_ns
    assert found.predicted_ns < found.observed_ns


def test_kernels_of_a_gpu_are_looked_up_by_the_op_that_launched_them(real_trace, tmp_path):
    with (
        Recording.open(real_trace("h100_hf_bert-small_infer"), with_calls=True) as recording,
        Baselines(tmp_path / "gpu.sqlite3") as elsewhere,
    ):
        elsewhere.put(Environment(device_type="cuda", device_name="another", torch="2"), replayed(recording, 10**6))
        found = asked(like=elsewhere).of(recording).window

        assert found.predicted_ns > 10**6 * len(recording.measured.activities.row)


def test_a_store_that_lacks_too_much_is_refused_with_what_it_lacks(recorded, store):
    answer = asked(like=store(1_000, but=("_C::onednn_mm",))).of(recorded)

    assert answer.refused.startswith("--like ")
    assert "_C::onednn_mm" in answer.refused
    assert "at most 10% may be" in answer.refused


def test_a_kernel_family_that_is_none_is_an_error(recorded):
    with pytest.raises(SettingsError, match="collective"):
        asked(kernels=["collective=2"]).of(recorded)
