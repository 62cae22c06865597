"""What a recording predicts of a change, against the rig run again with that change."""

from dataclasses import replace
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.changed import changed, one_step_ahead, recorded, with_floor, without_device_sync
from rig.program import Kernel, Op, Server, Step, Synchronize, Work
from rig.server import run
from rig.servers import device_bound, full_queue, host_bound, polled, random_server, tokens_now
from rig.trace import middle_of_three, to_json, whole
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, StepInfo
from taxbreak_vllm.model.step import Server as Labels
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.kernels import Family
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.trace.timeline import HostClass
from taxbreak_vllm.whatif.basis import Basis
from taxbreak_vllm.whatif.changes import HOST, Change, Range
from taxbreak_vllm.whatif.predict import predict

FACTORS = [(1.3, 1), (0.5, 1), (1, 1.5), (1, 0.5), (0.7, 0.7), (2, 0.6)]
SOME = [
    ({HostClass.PYTHON: 0.4}, 1),
    ({HostClass.PYTHON: 2.5}, 1),
    ({HostClass.DISPATCH: 0.3}, 1),
    ({HostClass.DISPATCH: 2, HostClass.LIBRARY: 2}, 1),
    ({HostClass.LAUNCH: 0.3}, 1),
    ({HostClass.LAUNCH: 3}, 1),
    ({HostClass.RUNTIME: 0.2}, 1),
    (1, {Family.ELEMENTWISE: 0.4}),
    (1, {Family.GEMM: 2}),
    (1, {Family.OTHER: 0.3}),
    (0.2, 0.3),
    (0.1, 1),
    (3, 1),
    (1, 3),
    (1, 0.1),
]
PER_STEP_NS = 8_000  # a call of unknown length more or less
SOME_SEEDS = pytest.mark.parametrize(
    "some_seeds",
    [
        pytest.param(range(12), id="12 servers"),
        pytest.param(range(12, 480), id="468 more", marks=[pytest.mark.nightly, pytest.mark.timeout(900)]),
    ],
)


def change(host=1.0, kernels=1.0):
    families = [family for family in Family if family is not Family.COLLECTIVE]
    by_class = host if isinstance(host, dict) else dict.fromkeys(HOST, host)
    by_family = kernels if isinstance(kernels, dict) else dict.fromkeys(families, kernels)
    return Change(
        host={cls: Range(low=times, high=times) for cls, times in by_class.items()},
        kernels={family: Range(low=times, high=times) for family, times in by_family.items()},
    )


def changes(server, seed):
    """Give changes and the server with each: all factors alike, some of one class or family, another device or path."""
    random = Random(seed)
    for host, kernels in (*FACTORS, *random.sample(SOME, 3)):
        yield change(host, kernels), changed(server, host=host, kernels=kernels)
    floor_ns = server.floor_ns + random.choice((-800, 4_000))
    yield Change(floor_ns=floor_ns), with_floor(server, floor_ns)
    if any(item == Synchronize(1_500) for step in server.steps for item in step.execute):
        yield Change(no_sync=("DeviceSynchronize",)), without_device_sync(server)
    if server.steps_ahead == 0:
        yield Change(one_step_ahead=True), one_step_ahead(server)


def length_ns(server):
    """From the first instant of a server's run to its last."""
    it = run(server)
    ends = [span.end_ns for span in it.spans] + [activity.end_ns for activity in it.activities]
    return max(ends) - min(span.start_ns for span in it.spans)


@pytest.fixture(scope="module")
def record(rules, tmp_path_factory):
    """Write the whole trace of a server and open it."""
    path = tmp_path_factory.mktemp("whatif") / "trace.json"

    def record(server, *, with_syncs=False):
        path.write_text(to_json(whole(run(server), with_syncs=with_syncs)))
        return Recording(read_events(path), Terms(rules=rules, floor_ns=server.floor_ns))

    return record


@pytest.mark.parametrize("server", [device_bound(), host_bound(), full_queue()], ids=["device", "host", "full queue"])
@pytest.mark.parametrize(("host", "kernels"), FACTORS)
def test_servers_made_by_hand_take_what_was_predicted(record, server, host, kernels):
    answer = predict(record(server), change(host, kernels), named="")

    assert answer.refused is None
    assert answer.window.predicted_ns == pytest.approx(length_ns(changed(server, host=host, kernels=kernels)), rel=1e-3)


def ask_all(record, servers):
    """Ask everything of each server's recording; return how much that is, how much was answered, and what wrongly.

    An answer is right within 2 %, or 8 µs a step.
    """
    wrong, answers, asked = [], 0, 0
    for seed, server in servers:
        recording = record(server)
        basis = Basis(recording)
        for changes_made, other in changes(server, seed):
            asked += 1
            answer = predict(recording, changes_made, named="", basis=basis)
            if answer.refused is not None:
                continue
            answers += 1
            true_ns = length_ns(other)
            room_ns = max(0.02 * true_ns, PER_STEP_NS * len(server.steps))
            if not answer.window.low_ns - room_ns <= true_ns <= answer.window.high_ns + room_ns:
                wrong.append((seed, changes_made, true_ns, answer.window))
    return asked, answers, wrong


def test_where_the_gates_pass_each_answer_holds_what_the_rig_does_with_the_change(record, seeds):
    """Seven of ten changes are answered."""
    asked, answers, wrong = ask_all(record, ((seed, random_server(seed)) for seed in seeds))

    assert answers > 0.7 * asked
    assert not wrong


@SOME_SEEDS
def test_so_does_each_answer_of_a_recording_that_tells_its_waits(record, some_seeds):
    servers = ((seed, random_server(seed)) for seed in some_seeds)
    asked, answers, wrong = ask_all(partial(record, with_syncs=True), servers)

    assert answers > 0.7 * asked
    assert not wrong


@SOME_SEEDS
def test_so_does_each_answer_of_servers_that_ask_for_events_instead_of_waiting_in_a_call(record, some_seeds):
    asked, answers, wrong = ask_all(record, ((seed, polled(random_server(seed), seed)) for seed in some_seeds))

    assert answers > 0.6 * asked
    assert not wrong


def test_the_same_program_on_another_device_takes_what_its_kernels_and_floor_say(record):
    """Within 6 %, told the true factors of each family of kernels, and T_sys."""
    errors = []
    for seed in range(20):
        random, server = Random(f"devices {seed}"), random_server(seed)
        factors = {family: 0.4 * 6.0 ** random.random() for family in (Family.ELEMENTWISE, Family.GEMM, Family.OTHER)}
        floor_ns = server.floor_ns + random.randint(-500, 4_000)
        other = with_floor(changed(server, kernels=factors), floor_ns)
        asked = replace(change(kernels=factors), floor_ns=floor_ns)
        if (window := predict(record(server), asked, named="").window) is not None:
            errors.append(abs(window.predicted_ns / length_ns(other) - 1))

    assert len(errors) >= 12
    assert max(errors) <= 0.06


@pytest.mark.parametrize("with_syncs", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["", "waits told"])
def test_a_recorded_step_of_a_live_server_is_predicted_as_an_iteration_or_refused(rules, tmp_path, with_syncs):
    path, wrong, answers = tmp_path / "trace.json", [], 0
    for seed in range(60):
        server = random_server(seed)
        it = run(server)
        path.write_text(to_json(middle_of_three(it, 3, is_whole=False, with_syncs=with_syncs)[0]))
        recording = Recording(read_events(path), Terms(rules=rules, floor_ns=server.floor_ns))
        basis = Basis(recording)
        for host, kernels in ((0.5, 1), (1, 0.5)):
            answer = predict(recording, change(host, kernels), named="", basis=basis)
            if answer.refused is not None:
                continue
            (step,) = answer.steps
            answers += 1
            true_ns = iteration_ns(changed(server, host=host, kernels=kernels))
            assert step.observed_ns == iteration_ns(server)
            if not step.low_ns * 0.98 - PER_STEP_NS <= true_ns <= step.high_ns * 1.02 + PER_STEP_NS:
                wrong.append((seed, host, kernels, true_ns, step))

    assert answers >= 40
    assert not wrong


def iteration_ns(server):
    """From the start of the fourth step to that of the fifth."""
    windows = run(server).windows
    return windows[4][0] - windows[3][0]


def test_a_recorded_step_tells_what_the_plain_one_would_take(rules, tmp_path):
    """The profiler takes 1.5 µs an op, which is known, and 0.9 µs a call, which is not."""
    path, wrong, answers = tmp_path / "trace.json", [], 0
    for seed in range(30):
        server = random_server(seed)
        slowed = recorded(server, op_ns=1_500, call_ns=900)
        path.write_text(to_json(middle_of_three(run(slowed), 3, is_whole=False)[0]))
        info = step_info(iteration_ns(slowed), iteration_ns(server))
        recording = Recording(read_events(path), Terms(rules=rules, floor_ns=server.floor_ns), info=info)
        basis = Basis(recording)
        for host, kernels in ((0.5, 1), (1.3, 1), (1, 0.5)):
            answer = predict(recording, change(host, kernels), named="", basis=basis)
            if answer.refused is not None:
                continue
            (step,) = answer.steps
            answers += 1
            true_ns = iteration_ns(changed(server, host=host, kernels=kernels))
            assert step.plain_ns == iteration_ns(server)
            if not step.plain_low_ns * 0.98 - PER_STEP_NS <= true_ns <= step.plain_high_ns * 1.02 + PER_STEP_NS:
                wrong.append((seed, host, kernels, true_ns, step))

    assert answers >= 25
    assert not wrong


def step_info(recorded_ns, plain_ns, num_plain=8):
    return StepInfo(
        step_id="sample",
        step_index=1,
        server=Labels(server_id="rig", device_type="cuda"),
        phase=Phase.DECODE,
        batch=Batch(),
        graph_mode=GraphMode.NONE,
        started_unix_ns=0,
        window_ns=recorded_ns,
        async_output=True,
        iteration_ns=recorded_ns,
        plain_iteration_ns=plain_ns,
        num_plain=num_plain,
        op_cost_ns=1_500,
    )


@pytest.mark.parametrize(
    ("plain", "num_plain", "reason"),
    [(1.0, 7, "fewer than 8 plain steps"), (3.0, 8, "3.00 times as long"), (0.001, 8, "without any host")],
)
def test_without_a_plain_step_that_fits_nothing_is_said_of_one(rules, tmp_path, plain, num_plain, reason):
    path, op = tmp_path / "trace.json", Op("aten::add", (Work(8_000), Kernel(4_000, 5_000), Work(1_000)))
    server = Server(steps=(Step((Work(17_000), op) * 20, tokens_now()),) * 6, steps_ahead=0, has_output_thread=False)
    path.write_text(to_json(middle_of_three(run(server), 3, is_whole=False)[0]))
    info = step_info(iteration_ns(server), round(plain * iteration_ns(server)), num_plain)
    recording = Recording(read_events(path), Terms(rules=rules, floor_ns=server.floor_ns), info=info)
    answer = predict(recording, change(0.5), named="")

    assert answer.refused is None
    assert answer.steps[0].plain_ns is None
    assert reason in answer.no_plain


class TestWhateverTheServer:
    """Properties of the replay, on random servers."""

    @settings(max_examples=25)
    @given(seed=st.integers(0, 2**32))
    def test_a_change_that_changes_nothing_gives_what_was_observed_to_the_ns(self, record, seed):
        answer = predict(record(random_server(seed)), change(), named="")

        for row in [answer.window, *answer.steps] if answer.window else []:
            assert row.predicted_ns == row.observed_ns

    @settings(max_examples=25)
    @given(seed=st.integers(0, 2**32), data=st.data())
    def test_it_is_monotone_in_every_factor(self, record, seed, data):
        recording = record(random_server(seed))
        factors = st.floats(0, 3)
        host = {cls: data.draw(factors) for cls in HOST}
        kernels = {family: data.draw(factors) for family in (Family.GEMM, Family.ELEMENTWISE, Family.OTHER)}
        which = data.draw(st.sampled_from([*host, *kernels]))
        more = data.draw(st.floats(0, 2))

        def predicted(extra):
            by_class = {cls: times + extra * (cls is which) for cls, times in host.items()}
            by_family = {family: times + extra * (family is which) for family, times in kernels.items()}
            point = Change(
                host={key: Range(low=times, high=times) for key, times in by_class.items()},
                kernels={key: Range(low=times, high=times) for key, times in by_family.items()},
            )
            return predict(recording, point, named="").window

        before, after = predicted(0), predicted(more)
        assert (before is None) == (after is None)
        if before is not None:
            assert before.predicted_ns <= after.predicted_ns

    @settings(max_examples=25)
    @given(seed=st.integers(0, 2**32), host=st.floats(0, 2), kernels=st.floats(0, 2))
    def test_no_host_and_no_kernels_are_bounds(self, record, seed, host, kernels):
        recording = record(random_server(seed))

        by_host = predict(recording, change(host), named="").window
        by_kernels = predict(recording, change(1, kernels), named="").window

        assert by_host is None or by_host.host_free_ns <= by_host.predicted_ns
        assert by_kernels is None or by_kernels.kernels_free_ns <= by_kernels.predicted_ns
