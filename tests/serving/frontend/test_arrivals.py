"""The file of arrivals says of each request when it came and when it went to which engine, in a bounded place."""

import numpy as np
import pytest

from taxbreak_vllm.model.frontend import NO_ENGINE
from taxbreak_vllm.serving.frontend.arrivals import NUM_SLOTS, Arrivals


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arrivals"


def _slots(path):
    """Read the file as an engine does."""
    return np.fromfile(path, dtype=np.int64).reshape(NUM_SLOTS, 4)


def test_a_request_on_its_way_has_no_engine_yet(path):
    arrivals = Arrivals(path)
    slot = arrivals.begin(100)

    assert _slots(path)[slot].tolist() == [100, 0, -1, 0]

    arrivals.end(slot, 100, 140, 3)

    assert _slots(path)[slot].tolist() == [100, 140, 3, 0]
    assert path.stat().st_size == NUM_SLOTS * 32
    assert path.stat().st_mode & 0o777 == 0o600


def test_slots_are_used_in_turn_and_those_in_use_are_passed_by(path):
    arrivals = Arrivals(path)
    held = arrivals.begin(1)
    for at in range(2, NUM_SLOTS + 2):
        slot = arrivals.begin(at)
        arrivals.end(slot, at, at, NO_ENGINE)

    slots = _slots(path)

    assert slots[held].tolist() == [1, 0, -1, 0]
    assert len(np.unique(slots[:, 0])) == NUM_SLOTS


def test_where_all_hang_there_is_no_slot_and_later_there_is(path):
    arrivals = Arrivals(path)
    held = [arrivals.begin(1) for _ in range(NUM_SLOTS)]

    assert sorted(held) == list(range(NUM_SLOTS))
    assert arrivals.begin(2) is None

    for slot in held:
        arrivals.end(slot, 1, 2, 0)
    assert arrivals.begin(3) is not None


def test_a_file_of_before_is_replaced_and_who_has_it_open_keeps_it(path):
    first = Arrivals(path)
    first.begin(100)

    second = Arrivals(path)

    assert not _slots(path).any()
    second.begin(200)
    assert first.begin(101) is not None
    assert _slots(path)[:, 0].max() == 200
    assert [entry.name for entry in path.parent.iterdir()] == ["arrivals"]


def test_a_folder_that_is_not_there_is_refused(path):
    with pytest.raises(OSError, match="arrivals"):
        Arrivals(path / "deeper" / "arrivals")
