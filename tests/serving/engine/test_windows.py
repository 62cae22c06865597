"""Every half minute 256 consecutive turns go into the spool, which never holds more than a few of them."""

import numpy as np
import pytest

from taxbreak_vllm.iterations.rows import NUM_COLUMNS, Column
from taxbreak_vllm.iterations.window import NUM_TURNS, read_window, read_windows
from taxbreak_vllm.model.engine import EngineState
from taxbreak_vllm.serving.engine.hooks import LoopHooks
from taxbreak_vllm.serving.engine.watch import LoopWatch
from taxbreak_vllm.serving.engine.windows import Windows
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool
from tests.serving.engine.test_hooks import Engine
from tests.serving.engine.test_watch import TimedEngine

STATE = EngineState(server_id="server", engine="0")
NO_SLOTS = np.zeros((0, 4), dtype=np.int64)


class Collected:
    """Windows of a made-up loop with a clock, and what of them is in the spool."""

    def __init__(self, folder):
        self.spool = Spool(folder, max_bytes=2**20, max_captures=10)
        self.hooks = LoopHooks(Engine(), lambda row: None)
        self.now_ns = 10**12
        self.windows = Windows(self.hooks, self.spool, now_ns=lambda: self.now_ns)
        self.number = 0

    def add(self, num_turns, state=STATE):
        rows = np.zeros((num_turns, NUM_COLUMNS), dtype=np.int64)
        rows[:, Column.SCHEDULED] = np.arange(self.number, self.number + num_turns)
        rows[:, Column.INPUT0] = rows[:, Column.SCHEDULED]
        self.number += num_turns
        self.windows.add(rows, NO_SLOTS, state)

    def begins(self):
        folder = self.spool.engine_dir("server", "0")
        found = read_windows(folder) if any(folder.glob("iterations-*")) else []
        for window in found:
            steps = window.rows[:, Column.SCHEDULED]
            assert len(steps) == NUM_TURNS
            assert (np.diff(steps) == 1).all()
        return [int(window.rows[0, Column.SCHEDULED]) for window in found]


@pytest.fixture
def collected(tmp_path):
    return Collected(tmp_path / "spool")


def test_the_first_window_is_there_as_soon_as_there_are_enough_turns(collected):
    collected.add(100)
    collected.add(155)
    assert collected.begins() == []

    collected.add(1)

    assert collected.begins() == [0]


def test_the_next_begins_half_a_minute_later_and_only_while_one_is_collected_cpu_time_is_stamped(collected):
    stamps = [collected.hooks.stamps_cpu]
    for _ in range(31):
        collected.add(300)
        collected.now_ns += 10**9
        stamps.append(collected.hooks.stamps_cpu)

    collected.add(300)

    assert stamps == [True, *[False] * 30, True]
    assert collected.begins() == [0, 31 * 300]


def test_the_newest_few_are_kept(collected):
    for _ in range(20):
        collected.now_ns += 31 * 10**9
        collected.add(1)
        collected.add(300)

    assert len(collected.begins()) == 8
    assert max(collected.begins()) == collected.number - 300
    names = {path.name for path in collected.spool.engine_dir("server", "0").iterdir()}
    assert names == {f"iterations-{number}.json.gz" for number in range(8)}


def test_turns_that_were_lost_are_in_no_window(collected):
    collected.add(200)
    lost = EngineState(server_id="server", engine="0", num_lost=7)
    collected.add(200, lost)
    collected.number += 7
    collected.add(256, lost)

    assert collected.begins() == [407]


def test_before_a_worker_has_answered_there_is_nowhere_to_put_one(collected):
    for _ in range(3):
        collected.add(200, EngineState(engine="0"))
    collected.add(300)

    assert collected.begins() == [400]
    assert not collected.hooks.stamps_cpu


def test_a_spool_that_takes_nothing_costs_windows_and_nothing_else(collected, tmp_path):
    (tmp_path / "spool").write_text("no folder")

    collected.add(300)

    assert not collected.hooks.stamps_cpu


def test_the_turns_of_a_watched_engine_are_in_its_first_window(tmp_path):
    spool = Spool(tmp_path / "spool", max_bytes=2**20, max_captures=10)
    engine = TimedEngine()
    watch = LoopWatch(engine, spool, EngineState(engine="0", model_name="m"), load_settings())
    watch._hooks.attach()
    for _ in range(NUM_TURNS + 20):
        engine.turn()
    watch.turn()
    for _ in range(3):
        engine.turn()

    found = read_window(spool.engine_dir("server", "0") / "iterations-0.json.gz")
    assert (found.server_id, found.engine, found.works_ahead) == ("server", "0", False)
    assert found.rows[:, Column.UPDATED].tolist() == list(range(1, NUM_TURNS + 1))
    assert (np.diff(found.rows[:, Column.THREAD_CPU]) > 0).all()
    assert watch._ring.take()[:, Column.THREAD_CPU].tolist() == [0, 0, 0]
