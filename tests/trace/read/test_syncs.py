"""Records of who waits for whom, as Kineto writes them."""

import json

import pytest

from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.trace.syncs import SyncKind


def sync(name, ts, **args):
    return {"ph": "X", "cat": "cuda_sync", "name": name, "pid": 0, "tid": 7, "ts": ts, "dur": 1, "args": args}


@pytest.fixture
def read(tmp_path):
    def read(*events):
        path = tmp_path / "trace.json"
        op = {"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 1, "tid": 1, "ts": 1, "dur": 2, "args": {}}
        path.write_text(json.dumps({"traceEvents": [op, *events]}))
        return read_events(path)

    return read


def test_each_kind_is_read_with_what_it_says(read):
    event = {"wait_on_stream": 7, "wait_on_cuda_event_record_corr_id": 41, "wait_on_cuda_event_id": 3, "device": 1}

    syncs = read(
        sync("Stream Wait Event", 10.5, stream=20, correlation=42, **event),
        sync("Event Sync", 11, stream=-1, correlation=43, **event),
        sync("Stream Sync", 12, stream=7, correlation=44, device=1),
        sync("Context Sync", 13, stream=-1, correlation=45, device=1),
    ).syncs

    assert syncs.kind.tolist() == [SyncKind.STREAM_WAIT, SyncKind.EVENT, SyncKind.STREAM, SyncKind.CONTEXT]
    assert syncs.start_ns.tolist() == [10_500, 11_000, 12_000, 13_000]
    assert syncs.correlation.tolist() == [42, 43, 44, 45]
    assert syncs.stream.tolist() == [20, -1, 7, -1]
    assert syncs.record.tolist() == [41, 41, -1, -1]
    assert syncs.record_stream.tolist() == [7, 7, -1, -1]
    assert syncs.device.tolist() == [1, 1, 1, 1]


def test_a_stream_that_is_none_is_none_however_it_is_written(read):
    syncs = read(sync("Context Sync", 1, stream=4_294_967_295, correlation=1, device=0)).syncs

    assert syncs.stream.tolist() == [-1]


def test_they_are_no_events_of_the_trace_and_an_unknown_kind_is_left_out(read):
    events = read(sync("Event Sync", 500, correlation=1), sync("Grid Sync", 2, correlation=2), sync("", None))

    assert len(events.kind) == 1
    assert events.last_ns == 3_000
    assert events.syncs.correlation.tolist() == [1]
    assert events.oddities.unread == {}
