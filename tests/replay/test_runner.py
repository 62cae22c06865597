"""Replays that crash, hang and swallow memory lose themselves alone; budgets hold; what was done is not done again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Environment, Outcome
from taxbreak_vllm.model.errors import ReplayError
from taxbreak_vllm.replay.child import Result
from taxbreak_vllm.replay.plan import plan
from taxbreak_vllm.replay.runner import Child, Limits, Pace, run
from taxbreak_vllm.replay.task import Options, Task
from taxbreak_vllm.trace.calls import Call, Input, signature

pytestmark = pytest.mark.timeout(300)

HERE = Environment(device_type="cpu", device_name="made up", torch="2.0")
UNLIMITED = Limits()
FLOATS = Input("float", (64,), (1,))


def task(op, *inputs):
    return Task(call=Call(op, inputs or (FLOATS,)))


def key(task):
    return signature(task.call)


# Among those that go wrong every second is one that must not suffer from it.
GOOD = [task("slow::wait", FLOATS, Input("Scalar", value=str(us))) for us in range(8)]
BAD = {
    "segfault": task("slow::segfault"),
    "hang": task("slow::hang"),
    "exit": task("slow::exit"),
    "want": task("slow::want"),
    "1 TB of inputs": task("aten::relu", Input("float", (2**38,), (1,))),
    "fail": task("slow::fail"),
    "no such op": task("slow::no_such_op"),
    "say_much": task("slow::say_much"),
}
OUTCOMES = {
    "segfault": (Outcome.CRASHED, "its process ended with signal 11"),
    "hang": (Outcome.TIMED_OUT, "no answer within 6 s"),
    "exit": (Outcome.CRASHED, "its process ended with exit status 7"),
    "want": (Outcome.OUT_OF_MEMORY, "can't allocate memory"),
    "1 TB of inputs": (Outcome.OUT_OF_MEMORY, "its inputs take 1024.0 GiB"),
    "fail": (Outcome.FAILED, "ValueError: never again nor this"),
    "no such op": (Outcome.DENIED, "no such op is registered here"),
    "say_much": (Outcome.MEASURED, ""),
}


@pytest.fixture(scope="module")
def survived(slow_ops, tmp_path_factory):
    """Run all of them in turn; return the entries by key, and how many tasks were left."""
    tasks = [one for pair in zip(GOOD, BAD.values(), strict=True) for one in pair]
    with Baselines(tmp_path_factory.mktemp("store") / "store.sqlite3") as store:
        left = run(tasks, store, Options(modules=("slow_ops",), max_bytes=2**30, niceness=0), Limits(task_s=6))
        (environment,) = store.environments()
        return store.get(environment, [key(one) for one in tasks]), left


@pytest.mark.parametrize("name", BAD)
def test_what_goes_wrong_is_named_with_its_reason(survived, name):
    entries, _ = survived
    outcome, reason = OUTCOMES[name]

    entry = entries[key(BAD[name])]

    assert entry.op == BAD[name].call.op
    assert entry.outcome is outcome, entry.reason
    assert reason in entry.reason
    assert "\n" not in entry.reason


def test_everything_else_is_measured(survived):
    entries, left = survived

    assert left == 0
    assert [entries[key(one)].outcome for one in GOOD] == [Outcome.MEASURED] * len(GOOD)
    assert all(entries[key(one)].dispatch.median_ns > 0 for one in GOOD)


def test_a_child_that_cannot_start_is_one_line_with_its_last_word(slow_ops):
    with pytest.raises(ReplayError, match=r"did not start: .*exit status 1: ModuleNotFoundError: .*no_such_module"):
        Child(Options(modules=("no_such_module",), niceness=0))


@pytest.fixture
def trace(slow_ops, tmp_path):
    """A trace of 10 signatures that each take about a fifth of a second to replay."""
    import torch

    x = torch.ones(64)
    steps = [(str(n), lambda n=n: torch.ops.slow.wait(x, 2000 + n)) for n in range(10)]
    return slow_ops.record(tmp_path / "trace.json", steps)


def start_replay(trace, store):
    command = [sys.executable, "-m", "taxbreak_vllm.cli", "replay", trace, "--baselines", store]
    return subprocess.Popen([*command, "--device", "cpu", "--import", "slow_ops"], stderr=subprocess.PIPE)


def children_of(pid):
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(holds, timeout_s=60):
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came to that"
        time.sleep(0.01)


@pytest.mark.nightly
def test_a_parent_killed_in_mid_run_loses_one_task_and_the_next_run_does_only_the_rest(trace, tmp_path):
    path = tmp_path / "store.sqlite3"
    keys = [key(one) for one in plan([trace]).tasks]
    with Baselines(path) as store:

        def entries():
            return store.get(store.environments()[0], keys) if store.environments() else {}

        parent = start_replay(trace, path)
        wait_until(lambda: len(entries()) >= 3 or parent.poll() is not None)
        children = children_of(parent.pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()
        wait_until(lambda: not any(map(is_running, children)))
        first = entries()

        again = start_replay(trace, path)
        _, said = again.communicate()
        second = entries()

    assert len(children) == 1
    assert 3 <= len(first) < len(keys) == 10
    assert again.returncode == 0, said
    assert {entry.outcome for entry in second.values()} == {Outcome.MEASURED}
    assert second.keys() == set(keys)
    assert {one: second[one].measured_unix_ns for one in first} == {one: first[one].measured_unix_ns for one in first}


class Clock:
    """A clock that moves when told, and remembers who slept."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


class MadeUpChild:
    """Takes a second for each task, a quarter of it on the processor."""

    def __init__(self, clock, opened, *, is_spent=False):
        self._clock = clock
        self._is_spent = is_spent
        self.environment = HERE
        self.cpu_ns = 0
        self.num_served = 0
        self.is_open = True
        opened.append(self)

    def serve(self, task, timeout_s):
        assert self.is_open
        self._clock.now += 1
        self.cpu_ns += 250_000_000
        self.num_served += 1
        return Result(entries=task.entries(Outcome.MEASURED, "", now_ns=1), cpu_ns=self.cpu_ns, is_spent=self._is_spent)

    def close(self):
        self.is_open = False


@pytest.fixture
def made_up(tmp_path):
    """Run tasks without a process; give what is left, the clock, the children and the progress reported."""

    def made_up(num_tasks, limits=UNLIMITED, *, is_spent=False, max_core_ratio=None, **told):
        clock, opened, reported = Clock(), [], []
        tasks = [task("aten::relu", Input("float", (n,), (1,))) for n in range(num_tasks)]
        with Baselines(tmp_path / "store.sqlite3") as store:
            left = run(
                tasks,
                store,
                Options(),
                limits,
                pace=Pace(max_core_ratio, now_s=lambda: clock.now),
                report=reported.append,
                now_s=lambda: clock.now,
                sleep=clock.sleep,
                open_child=lambda _: MadeUpChild(clock, opened, is_spent=is_spent),
                **told,
            )
        return left, clock, opened, reported

    return made_up


def test_the_time_budget_ends_a_run_and_the_next_goes_on(made_up):
    left, clock, _, _ = made_up(10, Limits(total_s=4))
    rest, *_, reported = made_up(10)

    assert (left, clock.now) == (6, 1004)
    assert rest == 0
    assert [progress.done for progress in reported if progress.outcome] == [5, 6, 7, 8, 9, 10]


def test_the_share_of_a_core_paces_a_run(made_up):
    _, clock, _, _ = made_up(10, max_core_ratio=0.02)

    # Nine tasks of 0.25 s lie before the last one starts: 2.25 s of processor time, at a fiftieth of a core.
    assert clock.now - 1000 == pytest.approx(9 * 0.25 / 0.02 + 1)
    assert max(clock.slept) <= 1


def test_the_budget_ends_a_run_that_is_waiting_for_its_share(made_up):
    left, clock, _, _ = made_up(10, Limits(total_s=20), max_core_ratio=0.02)

    # The second may start after 12.5 s, the third would after 25 s.
    assert left == 8
    assert clock.now - 1000 == pytest.approx(20, abs=1)


def test_a_busy_device_makes_it_wait(made_up):
    answers = iter([False, False, True, False, True])

    left, clock, _, _ = made_up(2, may_go_on=lambda: next(answers))

    assert left == 0
    assert clock.slept == [1, 1, 1]


def test_a_child_is_replaced_after_its_batch_and_where_it_is_spent(made_up):
    _, _, by_batch, _ = made_up(7, Limits(batch=3))
    _, _, spent, _ = made_up(9, is_spent=True)

    assert [child.num_served for child in by_batch] == [3, 3, 1]
    assert [child.num_served for child in spent] == [1, 1]  # seven were in the store
    assert not any(child.is_open for child in (*by_batch, *spent))


def test_an_environment_refused_ends_the_run_before_anything_is_done(made_up, tmp_path):
    def refuse(environment):
        raise ReplayError(f"not on {environment.device_name}")

    with pytest.raises(ReplayError, match="not on made up"):
        made_up(3, check=refuse)

    with Baselines(tmp_path / "store.sqlite3") as store:
        assert store.environments() == []


def test_progress_tells_what_is_at_work_and_what_became_of_it(made_up):
    *_, reported = made_up(2)

    assert [(p.done, p.total, p.op, p.outcome) for p in reported] == [
        (0, 2, "aten::relu", None),
        (1, 2, "aten::relu", Outcome.MEASURED),
        (1, 2, "aten::relu", None),
        (2, 2, "aten::relu", Outcome.MEASURED),
    ]
