"""The rig against itself, against servers that can be checked by eye, and against the analysis of whole traces."""

from dataclasses import astuple, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import trials

from rig import loss
from rig.program import COPIES, MAIN, OUTPUT, Call, Graph, Kernel, Op, Server, Step, Synchronize, Work
from rig.server import run
from rig.servers import device_bound, full_queue, host_bound, profiled, random_server, tokens_later, tokens_now
from rig.trace import bracket, middle_of_three, to_json, whole
from rig.truth import Figures, iteration, truth
from taxbreak_vllm.model.breakdown import ExposedTax, HostTime, IdleTime, StepBreakdown
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.read.kineto import read_events

seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def analyze(rules, tmp_path_factory):
    """Write a trace of a server, read it back and decompose it with the server's own floor."""
    path = tmp_path_factory.mktemp("rig") / "trace.json"

    def analyze(trace, server):
        path.write_text(to_json(trace))
        return Recording(read_events(path), Terms(rules=rules, floor_ns=server.floor_ns)).breakdown

    return analyze


def figures_of(step: Figures | StepBreakdown) -> tuple:
    """What the rig and the analysis both tell of a window."""
    taxes = step.taxes.delta_ft_ns, step.taxes.delta_ct_ns, step.taxes.delta_kt_ns, step.taxes.orchestration_ns
    return step.window_ns, step.host, step.device, step.exposed, taxes, step.launches, step.hdbi


def one_step(*execute, sample=(), **server) -> Server:
    return Server(steps=(Step(execute, sample),), **server)


class TestByHand:
    def test_a_kernel_on_an_idle_device_begins_its_latency_after_the_call_returned(self):
        it = run(one_step(Work(10), Kernel(100, 5), latency_ns=3))

        (kernel,) = it.activities
        assert (kernel.launch_ns, kernel.start_ns, kernel.end_ns) == (10, 18, 118)

    def test_a_kernel_behind_another_begins_after_the_gap(self):
        it = run(one_step(Kernel(100, 5), Kernel(100, 5), latency_ns=3, gap_ns=2))

        assert [(k.start_ns, k.end_ns) for k in it.activities] == [(8, 108), (110, 210)]

    def test_the_nodes_of_a_graph_run_one_after_the_other(self):
        it = run(one_step(Graph((10, 20, 30), call_ns=50, first_ns=8), node_gap_ns=1))

        assert [(k.start_ns, k.end_ns) for k in it.activities] == [(8, 18), (19, 39), (40, 70)]

    def test_a_collective_waits_for_its_peer_on_the_device(self):
        it = run(one_step(Kernel(100, 5, peer_ns=500), latency_ns=3))

        assert [(k.start_ns, k.end_ns) for k in it.activities] == [(8, 600)]

    def test_tokens_copied_later_wait_for_the_forward_pass_on_their_own_stream(self):
        it = run(one_step(Kernel(100, 5), sample=tokens_later(ns=20, call_ns=1), latency_ns=3))

        kernel, copy = it.activities
        assert (copy.stream, copy.start_ns, copy.end_ns) == (COPIES, kernel.end_ns, kernel.end_ns + 20)

    def test_a_blocking_copy_returns_after_it_was_made(self):
        server = one_step(Kernel(100, 5), sample=tokens_now(ns=20, call_ns=1), latency_ns=3, gap_ns=2, return_ns=4)
        it = run(server)

        assert it.windows == ((0, 8 + 100 + 2 + 20 + 4),)
        assert truth(it).total.host == HostTime(launch_ns=5, blocked_ns=129)

    def test_a_launch_call_waits_while_the_queue_is_full(self):
        it = run(one_step(*[Kernel(100, 5)] * 4, max_launches=2, latency_ns=3, gap_ns=0))

        # The third is launched when the first has begun, at 8; the fourth when the second has, at 108.
        assert [k.launch_ns for k in it.activities] == [0, 5, 10, 15]
        assert truth(it).total.host == HostTime(launch_ns=4 * 5, blocked_ns=108 - 15)

    def test_a_captured_launch_leaves_no_activity(self):
        it = run(one_step(Kernel(100, 5, is_captured=True), Kernel(100, 5)))

        assert len(it.activities) == 1
        assert [span.name for span in it.spans if span.kind == "call"] == ["cudaLaunchKernel"] * 2

    def test_idle_time_is_divided_by_what_the_host_did_until_the_next_launch(self):
        op = Op("aten::mm", (Work(20), Work(7, is_library=True), Kernel(100, 5), Work(9)))
        server = one_step(op, Synchronize(1), Call(4), Work(3), op, latency_ns=3, gap_ns=0, return_ns=6, floor_ns=8)
        it = run(server)

        total = truth(it).total
        first, second = it.activities
        # 20 + 7 + 5 + 3 until the first, then 6 to return, 4 in a call, 3 python, 20 dispatch, 7 library, 5 + 3 queue.
        assert (first.start_ns, second.start_ns - first.end_ns) == (35, 48)
        assert total.device.idle == IdleTime(host_ns=34, blocked_ns=6, queue_ns=8, edge_ns=35)
        assert total.exposed == ExposedTax(delta_ft_ns=23, delta_ct_ns=7, delta_kt_ns=0, other_ns=4)
        assert (total.taxes.delta_ft_ns, total.taxes.delta_ct_ns, total.taxes.delta_kt_ns) == (20 + 3 + 20, 14, 16)
        assert total.hdbi == 200 / (200 + 43 + 14 + 16)

    def test_a_step_waits_for_the_engine_between_its_two_calls_which_is_no_tax(self):
        step = Step((Work(10), Kernel(100, 5)), (Work(20), Kernel(100, 5)), gap_ns=500)
        it = run(Server(steps=(step,), latency_ns=3, gap_ns=0))

        total = truth(it).total
        assert total.places_ns == {"execute": 15, "gap": 500, "sample": 25}
        assert total.taxes.delta_ft_ns == 10 + 20
        # The first kernel ends at 118, 397 before the gap does.
        assert total.idle_by_cause == {"engine": 397, "host": 20, "queue": 8, "edge": 18}
        assert total.exposed_in_step == ExposedTax(delta_ft_ns=20)
        assert [(s.start_ns, s.end_ns) for s in it.spans if s.name == "taxbreak.engine"] == [(15, 515)]

    @pytest.mark.parametrize("has_output_thread", [True, False])
    def test_without_async_scheduling_the_device_is_empty_when_a_step_begins(self, has_output_thread):
        step = Step((Work(10_000), Kernel(1_000_000, 5_000)), tokens_now())
        it = run(Server(steps=(step,) * 4, steps_ahead=0, has_output_thread=has_output_thread, engine_ns=70_000))

        assert [start - end for (_, end), (start, _) in pairwise(it.windows)] == [70_000] * 3
        assert all(iteration(it, step).device.other_active_ns == 0 for step in range(3))

    def test_with_an_output_thread_the_tokens_are_waited_for_there(self):
        it = run(device_bound())

        waits = [span for span in it.spans if span.name == "cudaEventSynchronize"]
        assert {span.thread for span in waits} == {OUTPUT}
        assert iteration(it, 4).places_ns == {"execute": 3_980_000, "sample": 20_000, "waiting": 16_000_000}

    def test_without_one_they_are_waited_for_between_two_steps(self):
        it = run(replace(device_bound(), has_output_thread=False))

        waits = [span for span in it.spans if span.name == "cudaEventSynchronize"]
        assert {span.thread for span in waits} == {MAIN}
        middle = iteration(it, 4)
        assert set(middle.places_ns) == {"execute", "sample", "get_output", "engine"}
        assert middle.host.blocked_ns == 20_000_000 - 4_000_000 - it.server.engine_ns - it.server.output_ns

    def test_the_device_bound_server_has_hdbi_0_85_and_no_idle_time(self):
        middle = iteration(run(device_bound()), 4)

        assert (middle.window_ns, middle.places_ns["execute"] + middle.places_ns["sample"]) == (20_000_000, 4_000_000)
        assert round(middle.hdbi, 4) == 0.85
        assert middle.device.idle_ns == 0

    def test_the_host_bound_server_has_4_04_ms_of_exposed_tax(self):
        middle = iteration(run(host_bound()), 4)

        assert middle.exposed == ExposedTax(delta_ft_ns=4_040_000)
        assert middle.device.idle == IdleTime(host_ns=4_040_000, queue_ns=200 * 7_000 + 3_000)

    def test_a_thousand_launches_fill_the_queue(self):
        it = run(full_queue())

        assert iteration(it, 2).host.blocked_ns > 0.5 * iteration(it, 2).window_ns
        assert iteration(it, 2).device.idle_ns == iteration(it, 2).device.idle.queue_ns


class TestBracket:
    def test_has_the_steps_between_its_ends_and_what_they_launched(self):
        it = run(device_bound())
        trace = bracket(it, 3, 5)

        assert [span.name for span in trace.spans if span.kind == "step"] == [f"taxbreak.step:{n}" for n in (3, 4, 5)]
        assert {activity.step for activity in trace.activities} == {3, 4, 5}
        assert trace.activities == tuple(a for a in it.activities if a.step in (3, 4, 5))

    def test_has_no_record_of_work_launched_before_that_still_runs(self):
        it = run(device_bound())
        trace = bracket(it, 3, 5)

        start_ns = it.windows[3][0]
        still_running = [a for a in it.activities if a.launch_ns < start_ns < a.end_ns]
        assert len(still_running) > 100
        assert not set(still_running) & set(trace.activities)

    def test_calls_the_steps_around_the_middle_one_neighbours(self):
        trace, _ = middle_of_three(run(device_bound()), 4)

        names = ["taxbreak.neighbour:before", "taxbreak.step:4", "taxbreak.neighbour:after"]
        assert [span.name for span in trace.spans if span.kind == "step"] == names

    def test_may_end_when_its_last_step_has_begun(self):
        it = run(device_bound())
        trace, figures = middle_of_three(it, 4, is_whole=False)

        assert [(s.start_ns, s.end_ns) for s in trace.spans if s.kind == "step"][-1] == (figures.end_ns, figures.end_ns)
        assert {activity.step for activity in trace.activities} == {3, 4}

    def test_ends_with_the_wait_for_the_device(self):
        trace = bracket(run(device_bound()), 3, 5)

        *_, last = trace.spans
        assert last.name == "cudaDeviceSynchronize"
        assert last.end_ns > max(activity.end_ns for activity in trace.activities)

    def test_has_no_record_of_what_still_ran_where_it_was_not_waited_for(self):
        it = run(device_bound())
        trace = bracket(it, 3, 5, is_drained=False)

        assert 5 not in {activity.step for activity in trace.activities}
        assert max(activity.end_ns for activity in trace.activities) <= it.windows[5][1]

    def test_of_a_profiler_that_takes_time_holds_the_steps_as_they_were(self):
        it = run(profiled(device_bound(), 3, 5))
        plain = run(device_bound())

        assert it.windows[3][0] - plain.windows[3][0] == 1_000_000
        assert iteration(it, 5).places_ns["profiler"] > 3_000_000 + iteration(it, 4).device_ns
        assert len(bracket(it, 3, 5).activities) == len(bracket(plain, 3, 5).activities)

    @trials(200)
    @given(seeds)
    def test_of_three_steps_holds_all_device_work_of_the_middle_iteration(self, seed):
        it = run(random_server(seed))
        for middle in range(1, len(it.windows) - 1):
            trace, figures = middle_of_three(it, middle)

            recorded = sum(_length_in(figures, a) for a in trace.activities)
            assert recorded == sum(_length_in(figures, a) for a in it.activities)


@trials(200)
@given(seeds)
def test_the_parts_of_every_window_sum_to_it(seed):
    it = run(random_server(seed))
    found = truth(it)

    for figures in (found.total, *found.steps, *found.iterations):
        device = figures.device
        assert sum(astuple(figures.host)) == sum(figures.places_ns.values()) == figures.window_ns
        assert device.active_ns + device.other_active_ns + device.idle_ns == device.window_ns
        assert sum(astuple(device.idle)) == device.idle_ns
        assert sum(astuple(figures.exposed)) == device.idle.host_ns
        assert sum(figures.idle_by_cause.values()) == device.idle_ns
        assert sum(astuple(figures.exposed_in_step)) == figures.idle_by_cause.get("host", 0)
        assert sum(figures.idle_places_ns.values()) == device.idle.host_ns + device.idle.blocked_ns
        assert min(*astuple(figures.host), *astuple(device.idle), *astuple(figures.exposed)) >= 0
    assert all(figures.device.window_ns == figures.window_ns for figures in found.iterations)
    assert [i.end_ns for i in found.iterations[:-1]] == [i.start_ns for i in found.iterations[1:]]


@trials(200)
@given(seeds)
def test_no_stream_does_two_things_at_once_and_nothing_runs_before_it_was_launched(seed):
    it = run(random_server(seed))

    for stream in {activity.stream for activity in it.activities}:
        own = [activity for activity in it.activities if activity.stream == stream]
        assert all(before.end_ns <= after.start_ns for before, after in pairwise(own))
    assert all(activity.launch_ns < activity.start_ns < activity.end_ns for activity in it.activities)
    assert all(before.end_ns == after.start_ns for before, after in pairwise(it.segments))


@trials(100)
@given(seeds)
def test_the_analysis_of_a_whole_trace_says_what_is_true(analyze, seed):
    server = random_server(seed)
    server = replace(server, steps=tuple(replace(step, gap_ns=0) for step in server.steps))
    it = run(server)
    found, told = truth(it), analyze(whole(it), server)

    assert figures_of(told.total) == figures_of(found.total)
    assert [figures_of(step) for step in told.steps] == [figures_of(step) for step in found.steps]


@pytest.mark.parametrize("server", [device_bound(), host_bound(), profiled(device_bound(), 3, 5)])
def test_the_analysis_of_the_whole_trace_of_servers_made_by_hand_says_what_is_true(analyze, server):
    it = run(server)

    assert figures_of(analyze(whole(it), server).total) == figures_of(truth(it).total)


def test_the_analysis_of_a_full_queue_tells_waiting_for_room_from_launching(analyze):
    server = full_queue()
    it = run(server)
    found, told = truth(it).total, analyze(whole(it), server).total

    assert (told.device, told.exposed, told.hdbi) == (found.device, found.exposed, found.hdbi)
    assert told.host == found.host


@pytest.mark.parametrize(
    "fault",
    [
        {"latency_ns": 2_100},
        {"gap_ns": 1_100},
        {"node_gap_ns": 800},
        {"return_ns": 3_100},
        {"engine_ns": 10_100},
        {"output_ns": 5_100},
        {"floor_ns": 6_100},
        {"steps_ahead": 0},
        {"has_output_thread": True},
    ],
    ids=str,
)
def test_a_rig_with_a_planted_fault_disagrees_with_the_analysis(analyze, fault):
    op = Op("aten::add", (Work(5_000), Kernel(60_000, 5_000)))
    graph = Graph((4_000,) * 3, 9_000, first_ns=12_000)
    step = Step((Work(9_000), op, op, graph), tokens_later())
    server = Server(steps=(step,) * 5, has_output_thread=False, engine_ns=10_000, output_ns=5_000)
    told = analyze(whole(run(server)), server).total

    assert figures_of(told) == figures_of(truth(run(server)).total)
    assert figures_of(told) != figures_of(truth(run(replace(server, **fault))).total)


LOSSES = {
    "head": lambda trace: loss.head(trace, 1),
    "tail": lambda trace: loss.tail(trace, 1),
    "every": lambda trace: loss.every(trace, 7),
    "all_but_every": lambda trace: loss.all_but_every(trace, 4),
    "graph_nodes": lambda trace: loss.graph_nodes(trace, 1),
    "links": lambda trace: loss.links(trace, 10),
    "links_to_0": lambda trace: loss.links(trace, 10, 0),
    "calls": lambda trace: loss.calls(trace, 10),
    "long_record": lambda trace: loss.long_record(trace, 5),
    "early_record": lambda trace: loss.early_record(trace, 5),
}


@pytest.mark.parametrize("spoil", LOSSES.values(), ids=LOSSES)
def test_what_a_profiler_loses_changes_what_the_analysis_says(analyze, spoil):
    op = Op("aten::add", (Work(5_000), Kernel(3_000, 5_000)))
    graph = Graph((4_000,) * 3, 9_000, first_ns=12_000)
    server = Server(steps=(Step((Work(9_000), op, op, graph), tokens_later()),) * 5)
    it = run(server)

    assert figures_of(analyze(spoil(whole(it)), server).total) != figures_of(truth(it).total)


def test_a_loss_takes_no_more_than_it_says():
    trace = whole(run(device_bound(steps=2)))
    count = len(trace.activities)

    assert len(loss.head(trace, 3).activities) == len(loss.tail(trace, 3).activities) == count - 3
    assert len(loss.every(trace, 4).activities) + len(loss.all_but_every(trace, 4).activities) == count
    assert loss.graph_nodes(trace, 0) == trace
    assert loss.head(trace, 0) == loss.tail(trace, 0) == trace


def test_a_seed_gives_one_server_and_a_server_one_run():
    assert random_server(7) == random_server(7) != random_server(8)
    assert run(random_server(7)) == run(random_server(7))


def _length_in(figures: Figures, activity) -> int:
    return max(min(activity.end_ns, figures.end_ns) - max(activity.start_ns, figures.start_ns), 0)
