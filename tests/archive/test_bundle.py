"""One capture as one object: the same bytes whenever it is packed, and analyzed as where it came from."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import pytest

from taxbreak_vllm.archive.bundle import files_of, info_of, pack, pack_files, unpack
from taxbreak_vllm.limit.live import limited
from taxbreak_vllm.model.errors import ArchiveError, SpoolError
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.taxes.recording import Recording

TRACE = Path(__file__).parents[1] / "data" / "serving.json"
SERVER = Server(server_id="vllm-a", model_name="tiny", vllm="0.32.0", device_name="NVIDIA H100")
INFO = StepInfo(
    step_id="a-1",
    step_index=1,
    server=SERVER,
    phase=Phase.DECODE,
    batch=Batch(requests=1),
    graph_mode=GraphMode.NONE,
    started_unix_ns=1_700_000_000 * 10**9,
    window_ns=10**6,
)
STATE = WorkerState(server=SERVER, started_unix_ns=5, updated_unix_ns=7, enabled=True, settings={"max_num_seqs": "8"})


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", max_bytes=10**9, max_captures=100)


def put(spool, info=INFO):
    spool.put(info, lambda path: path.write_bytes(gzip.compress(TRACE.read_bytes())))
    return spool.find(info.step_id)


def test_a_capture_is_the_same_object_whenever_it_is_packed(spool):
    capture = put(spool)
    spool.put_state(STATE)
    first = pack(capture)

    spool.mark(capture, "analyzed")
    spool.put_state(replace(STATE, updated_unix_ns=9, num_samples=3, overhead_ns=4, runqueue_wait_ratio=0.1))
    for path in capture.path.iterdir():
        os.utime(path, ns=(0, 0))

    assert pack(capture) == first
    assert list(files_of(first)) == ["state.json", "step.json", "trace.json.gz"]
    assert info_of(first) == INFO


def test_what_is_unpacked_is_analyzed_as_where_it_came_from(spool, tmp_path):
    capture = put(spool)
    spool.put_state(STATE)

    copy = unpack(pack(capture), tmp_path / "copy")

    assert copy.read_info() == capture.read_info()
    assert copy.read_state().settings == STATE.settings
    found = []
    for path in (capture.path, copy.path):
        with Recording.open(path) as recording:
            breakdown = limited(recording)
            found.append(replace(breakdown, source=replace(breakdown.source, path="")))
    assert found[0] == found[1]


def test_a_capture_that_is_gone_is_told(spool):
    capture = put(spool)
    spool.remove(capture)

    with pytest.raises(SpoolError, match="a-1"):
        pack(capture)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk" * 400,
        pack_files({"other": b"x"}),
        pack_files({"step.json": b"{}", "trace.json.gz": b""}),
        pack_files({"step.json": b"{}", "trace.json.gz": b"x" * 9000})[:6000],
    ],
)
def test_what_is_no_capture_is_named_so(data, tmp_path):
    with pytest.raises(ArchiveError, match="no capture"):
        unpack(data, tmp_path)


def test_a_name_that_leads_out_of_the_folder_is_refused(spool, tmp_path):
    files = files_of(pack(put(spool)))
    files["step.json"] = files["step.json"].replace(b'"a-1"', b'"../../x"')

    with pytest.raises(ArchiveError, match="cannot name a folder"):
        unpack(pack_files(files), tmp_path / "copy")
