"""Whatever lies where an API server's arrivals should be, an engine reads the slots that are there."""

import os
import struct

import pytest

from taxbreak_vllm.iterations import waits
from taxbreak_vllm.model.frontend import NO_ENGINE, UNKNOWN_ENGINE
from taxbreak_vllm.serving.engine.arrivals import read_arrivals
from taxbreak_vllm.serving.frontend.arrivals import Arrivals as Writer


def slot(*numbers):
    return struct.pack("=4q", *numbers)


@pytest.fixture
def write(tmp_path):
    def write(data, api=0):
        folder = tmp_path / f"api-{api}"
        folder.mkdir(exist_ok=True)
        (folder / "arrivals").write_bytes(data)
        return folder / "arrivals"

    return write


def test_the_slots_of_all_api_servers_are_read(write, tmp_path):
    write(slot(1, 2, 3, 0) + slot(4, 5, 6, 0))
    write(slot(7, 0, -1, 0), api=12)

    assert read_arrivals(tmp_path).tolist() == [[1, 2, 3, 0], [4, 5, 6, 0], [7, 0, -1, 0]]


@pytest.mark.parametrize("is_there", [True, False])
def test_without_a_file_there_are_none(tmp_path, is_there):
    (tmp_path / "api-0").mkdir()

    assert read_arrivals(tmp_path if is_there else tmp_path / "no server").shape == (0, 4)


def test_a_short_file_has_the_slots_that_are_whole_and_harms_no_other(write, tmp_path):
    write(slot(1, 2, 3, 0) + slot(4, 5, 6, 0)[:-3])
    write(slot(7, 8, 9, 0), api=1)

    assert read_arrivals(tmp_path).tolist() == [[1, 2, 3, 0], [7, 8, 9, 0]]


def test_of_a_file_that_has_no_end_only_its_beginning_is_read(write, tmp_path):
    write(slot(1, 2, 3, 0) * 5000)

    assert len(read_arrivals(tmp_path)) == 4096


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "unreadable"])
def test_what_is_no_file_of_an_api_servers_has_none_and_holds_nobody_up(write, tmp_path, kind):
    path = write(slot(1, 2, 3, 0))
    if kind == "unreadable":
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("/dev/zero")
        else:
            os.mkfifo(path)

    assert read_arrivals(tmp_path).shape == (0, 4)


def test_what_an_api_server_writes_is_what_an_engine_reads(tmp_path):
    (tmp_path / "api-0").mkdir()
    written = Writer(tmp_path / "api-0" / "arrivals")
    written.begin(10)
    sent, ended = written.begin(20), written.begin(30)
    written.end(sent, 20, 25, 3)
    written.end(ended, 30, 35, NO_ENGINE)

    found = read_arrivals(tmp_path)

    assert found[found[:, 0] > 0].tolist() == [[10, 0, UNKNOWN_ENGINE, 0], [20, 25, 3, 0], [30, 35, -2, 0]]
    assert waits.Arrivals.of(found, 3).sent_ns.tolist() == [25]
