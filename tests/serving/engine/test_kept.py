"""An engine's traffic comes into the spool once its server is known; what fails there ends it and nothing else."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from taxbreak_vllm.iterations.rows import NUM_COLUMNS, Column
from taxbreak_vllm.serving.engine.kept import KeptTraffic
from taxbreak_vllm.serving.engine.setup import INSTANTS
from taxbreak_vllm.serving.engine.traffic import UPDATE, Traffic
from taxbreak_vllm.settings import load_settings
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.traffic.log import read_log
from taxbreak_vllm.traffic.rows import Stamped, Updated, unstamped
from tests.serving.engine.test_traffic import Scheduler, request, step


class Config(SimpleNamespace):
    def __getattr__(self, name):
        return None


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", max_bytes=2**20, max_captures=10)


@pytest.fixture
def engine():
    scheduler = Scheduler()
    scheduler.block_size = 16
    scheduler.kv_cache_config = SimpleNamespace(num_blocks=64, kv_cache_groups=[])
    parallel = Config(pipeline_parallel_size=1, decode_context_parallel_size=1, data_parallel_size=1)
    config = Config(parallel_config=parallel, model_config=Config(), scheduler_config=Config())
    return SimpleNamespace(scheduler=scheduler, vllm_config=config)


@pytest.fixture
def hooks(engine):
    traffic = Traffic(engine.scheduler)
    traffic.attach()
    return SimpleNamespace(traffic=traffic, server_id="server")


def keeping(hooks, engine, spool, **settings):
    return KeptTraffic(hooks, engine, "0", spool, load_settings(**settings))


def turn(number, at_ns):
    rows = np.zeros((1, NUM_COLUMNS), dtype=np.int64)
    rows[0, [Column.SCHEDULED, Column.SCHEDULE0, Column.END]] = number, at_ns, at_ns + 9
    return rows


def test_lines_wait_for_the_name_of_the_server_and_turns_come_with_them(hooks, engine, spool):
    kept = keeping(hooks, engine, spool)
    hooks.server_id = ""
    hooks.traffic.note(UPDATE, step(1), 0)
    kept.add(turn(1, 10**15))
    hooks.server_id = "server"
    hooks.traffic.note(UPDATE, step(2), 0)
    kept.add(turn(2, 10**15 + 50))

    setup, rows = read_log(spool.root / "server" / "traffic", "engine-0")
    assert [row for row in rows if isinstance(row, Updated)] == [Updated(1), Updated(2)]
    stamps = unstamped([row for row in rows if isinstance(row, Stamped)], setup, setup.columns)
    assert stamps.tolist() == [turn(1, 10**15)[0].tolist(), turn(2, 10**15 + 50)[0].tolist()]
    assert (setup.num_blocks, setup.block_size, setup.hash_block_size, setup.refused) == (64, 16, 16, ())
    assert set(setup.instants) == set(INSTANTS)
    assert kept.off_reason is None


def test_a_disk_that_refuses_ends_it(hooks, engine, spool, tmp_path):
    (tmp_path / "spool").write_text("no folder")
    kept = keeping(hooks, engine, spool)
    hooks.traffic.note(UPDATE, step(1), 0)

    kept.add(turn(1, 10**15))

    assert kept.off_reason == "disk"
    assert hooks.traffic.fault
    kept.add(turn(2, 10**15))
    assert engine.scheduler.add_request(SimpleNamespace(request_id="a")) == "added"


def test_what_cannot_be_read_ends_it(hooks, engine, spool):
    kept = keeping(hooks, engine, spool)
    engine.scheduler.add_request(SimpleNamespace(request_id="a"))  # a request of another make

    kept.add(turn(1, 10**15))

    assert kept.off_reason == "lines"


def test_where_nothing_more_is_noted_no_request_is_kept(hooks, engine, spool):
    kept = keeping(hooks, engine, spool)
    asked = request("a")
    is_kept = weakref.ref(asked)
    engine.scheduler.add_request(asked)
    del asked
    kept.add(turn(1, 10**15))
    assert is_kept() is not None

    hooks.traffic.stop("a fault")
    kept.add(turn(2, 10**15))

    assert kept.off_reason == "hook"
    assert is_kept() is None


def test_the_setting_keeps_nothing(hooks, engine, spool):
    kept = keeping(hooks, engine, spool, traffic_max_bytes=0)
    hooks.traffic.note(UPDATE, step(1), 0)

    kept.add(turn(1, 10**15))

    assert kept.off_reason == "setting"
    assert not spool.root.exists()
