"""What a server keeps of its traffic is read as it was written, is bounded, and survives a writer that died."""

import gzip
import os

import numpy as np
import pytest

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.traffic.files import sources
from taxbreak_vllm.traffic.log import FILES_KEPT, Log, read_log
from taxbreak_vllm.traffic.rows import Aborted, Added, Ended, Lost, Reset, Scheduled, Setup, Updated, stamped, unstamped

SETUP = Setup(server_id="s", source="engine-0", columns=("number", "begin", "end", "length"), instants=(1, 2))
ROWS = [
    Added(0, 5, 3, 100, 16, 0, 0, True, [], [11, 12]),
    Scheduled(1, 100, 1, 0, 0, 0, "NONE", False, 77),
    Updated(1),
    Aborted(9, [0]),
    Reset(10, "reset_prefix_cache"),
    Ended(0, "length", 16, 32, 1, [13]),
    Lost(2),
]


def test_lines_are_read_as_they_were_written(tmp_path):
    log = Log(tmp_path, SETUP, max_bytes=2**20)
    log.append(ROWS[:3])
    log.append(ROWS[3:])

    assert read_log(tmp_path, "engine-0") == (SETUP, ROWS)
    assert sources(tmp_path) == ["engine-0"]


def test_the_oldest_files_go_and_each_can_be_read_alone(tmp_path):
    log = Log(tmp_path, SETUP, max_bytes=FILES_KEPT * 64)
    for number in range(100):
        log.append([Updated(number)])

    files = sorted(tmp_path.iterdir())
    assert len(files) == FILES_KEPT
    assert read_log(tmp_path, "engine-0")[1][-1] == Updated(99)
    for path in files[:-1]:
        path.unlink()
    setup, rows = read_log(tmp_path, "engine-0")
    assert setup == SETUP
    assert rows[-1] == Updated(99)


def test_a_second_writer_goes_on_behind_the_first(tmp_path):
    Log(tmp_path, SETUP, max_bytes=2**20).append([Updated(1)])
    Log(tmp_path, SETUP, max_bytes=2**20).append([Updated(2)])

    assert read_log(tmp_path, "engine-0")[1] == [Updated(1), Updated(2)]


def test_files_are_their_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        Log(tmp_path / "traffic", SETUP, max_bytes=2**20).append([Updated(1)])
    finally:
        os.umask(before)

    (path,) = (tmp_path / "traffic").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_file_cut_off_at_any_byte_is_read_as_far_as_it_goes(tmp_path):
    log = Log(tmp_path, SETUP, max_bytes=2**20)
    log.append(ROWS[:3])
    (path,) = tmp_path.iterdir()
    first = path.stat().st_size
    log.append(ROWS[3:])
    whole = path.read_bytes()

    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        found = read_log(tmp_path, "engine-0")[1]
        assert found == ROWS[: len(found)]
        assert len(found) >= 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"schema": "taxbreak.traffic/9", "server_id": "", "source": ""}\n', "another version wrote it"),
        (b"[1, 2]\n", "not a server's traffic"),
        (b'{"server_id": "", "source": ""}\n["nothing", 1]\n', "not a server's traffic"),
    ],
)
def test_a_file_of_something_else_is_refused_in_a_line(tmp_path, text, says):
    path = tmp_path / "engine-0-00000000.jsonl.gz"
    path.write_bytes(gzip.compress(text))

    with pytest.raises(SpoolError, match=says):
        read_log(tmp_path, "engine-0")
    path.write_bytes(b"no gzip")
    with pytest.raises(SpoolError, match=str(path)):
        read_log(tmp_path, "engine-0")


def test_stamps_come_back_and_never_stays_never():
    rows = np.array([[1, 10**15, 10**15 + 7, 42], [2, 0, 10**15 + 9, -1], [3, 0, 0, 5]])

    lines = stamped(rows, SETUP.instants)

    assert max(max(line.values) for line in lines) < 100
    assert unstamped(lines, SETUP, SETUP.columns).tolist() == rows.tolist()
    assert unstamped(lines, SETUP, ["end", "unheard of"]).tolist() == [[10**15 + 7, 0], [10**15 + 9, 0], [0, 0]]
