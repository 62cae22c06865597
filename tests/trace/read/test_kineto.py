"""Files as profilers, scripts and accidents leave them, read into the same columns or refused in one line."""

import gzip
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import zstandard

from taxbreak_vllm.model.errors import TraceFormatError
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.read.kineto import read_events

COLUMNS = ("kind", "start_ns", "end_ns", "name", "thread", "correlation", "external", "stream", "device")


def event(name="aten::mm", *, cat="cpu_op", ts=10, dur=5, pid=1, tid=1, **fields):
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, **fields}


def launch(number, **fields):
    args = {"External id": number, "cbid": 211, "correlation": number}
    return event("cudaLaunchKernel", cat="cuda_runtime", ts=10 * number, args=args, **fields)


def kernel(number, **fields):
    args = {"device": 0, "stream": 7, "correlation": number, "grid": [1, 2, 3], "registers per thread": 32}
    return event("k", cat="kernel", ts=10 * number + 3, dur=4, pid=0, tid=7, args=args, **fields)


EVENTS = [x for n in range(1, 41) for x in (event(ts=10 * n - 1, dur=8), launch(n), kernel(n))]
AROUND = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA H200"}, {"id": 1, "name": "other"}]}
BASE = {"baseTimeNanoseconds": 1_751_410_836_000_000_000}


@pytest.fixture
def load(tmp_path):
    """Write text or bytes to a file and read it."""

    def load(content, name="trace.json", **options):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_events(path, **options)

    return load


def assert_same(got: Events, want: Events):
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(got, column), getattr(want, column), column)
    assert (got.names, got.threads, got.num_events) == (want.names, want.threads, want.num_events)
    assert got.num_dropped == want.num_dropped == 0
    assert got.is_truncated == want.is_truncated


def times(events):
    return list(zip(events.start_ns.tolist(), events.end_ns.tolist(), strict=True))


PLAIN = json.dumps({**AROUND, **BASE, "traceEvents": EVENTS})
FORMS = {
    "gzip": gzip.compress(PLAIN.encode()),
    "gzip of two members": gzip.compress(PLAIN[:3000].encode()) + gzip.compress(PLAIN[3000:].encode()),
    "zstandard": zstandard.compress(PLAIN.encode()),
    "zstandard of two frames": zstandard.compress(PLAIN[:3000].encode()) + zstandard.compress(PLAIN[3000:].encode()),
    "zstandard with a frame to skip": b"\x50\x2a\x4d\x18\x04\0\0\0more" + zstandard.compress(PLAIN.encode()),
    "with a byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "compact": json.dumps({**AROUND, **BASE, "traceEvents": EVENTS}, separators=(",", ":")),
    "pretty": json.dumps({**AROUND, **BASE, "traceEvents": EVENTS}, indent=4),
    "pretty with line ends of Windows": json.dumps({**AROUND, "traceEvents": EVENTS}, indent=1).replace("\n", "\r\n"),
    "a bare list": json.dumps(EVENTS),
    "a bare list after white space": "\n \n" + json.dumps(EVENTS, indent=1) + "\n",
    "events first": json.dumps({"traceEvents": EVENTS, **AROUND, **BASE}),
    "events between other keys": json.dumps({**BASE, "traceEvents": EVENTS, **AROUND}, indent=2),
    "without space before the list": PLAIN.replace('"traceEvents": [', '"traceEvents":['),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_a_file_does_not_change_what_is_read(load, form):
    assert_same(load(FORMS[form], "other.json"), load(PLAIN))


@pytest.mark.parametrize("block_bytes", [600, 601, 617, 1000, 4096, 1 << 16])
@pytest.mark.parametrize("form", FORMS)
def test_the_size_of_blocks_does_not_change_what_is_read(load, form, block_bytes):
    whole = load(FORMS[form])

    blockwise = load(FORMS[form], block_bytes=block_bytes)

    assert_same(blockwise, whole)
    assert blockwise.metadata == whole.metadata
    assert blockwise.raw_bytes == whole.raw_bytes


@pytest.mark.parametrize("form", ["gzip", "pretty", "events first", "events between other keys"])
def test_what_stands_around_the_events_is_kept(load, form):
    events = load(FORMS[form])

    assert events.base_ns == BASE["baseTimeNanoseconds"]
    assert events.device_name == "NVIDIA H200"
    assert "traceEvents" not in events.metadata


def test_an_event_becomes_one_row(load):
    events = load(json.dumps({"traceEvents": [launch(7), kernel(7), {"ph": "M", "name": "process_name"}]}))

    assert events.kind.tolist() == [EventKind.RUNTIME, EventKind.KERNEL]
    assert times(events) == [(70_000, 75_000), (73_000, 77_000)]
    assert [events.names[name] for name in events.name] == ["cudaLaunchKernel", "k"]
    assert [events.threads[thread] for thread in events.thread] == [("1", "1"), ("0", "7")]
    assert events.correlation.tolist() == [7, 7]
    assert events.external.tolist() == [7, -1]
    assert (events.stream.tolist(), events.device.tolist()) == ([-1, 7], [-1, 0])
    assert events.num_events == 3


def test_names_that_look_like_the_ends_of_events_cut_none(load):
    names = [
        '}, {"name": "x"',
        '"}, {"ph": "X", "ts": 1}], "traceEvents": [{"',
        "}, {",
        "]}",
        '\\"}, {\\"',
        "\\",
        "ядро 内核 🔥 \u2028",
        "tab\tand\nnewline",
        '": "',
    ]
    listed = [event(name, ts=n, args={"note": name, "list": [{"a": 1}, {"b": name}]}) for n, name in enumerate(names)]
    for text in (json.dumps(listed * 20), json.dumps(listed * 20, ensure_ascii=False, separators=(",", ":"))):
        for block_bytes in (150, 500, 1 << 20):
            events = load(text, block_bytes=block_bytes)

            assert [events.names[name] for name in events.name] == names * 20
            assert events.num_dropped == 0


def test_events_with_lists_of_objects_inside_are_cut_between_events_only(load):
    nested = [{"a": n, "b": [{"c": n}, {"d": n}]} for n in range(30)]
    listed = [event(ts=n, args={"stack": nested}) for n in range(30)]

    events = load(json.dumps(listed), block_bytes=512)

    assert events.start_ns.tolist() == [1000 * n for n in range(30)]


def test_microseconds_become_nanoseconds_exactly(load):
    # (text of ts, text of dur) and what they are in ns, by hand: move the point three places.
    table = {
        ("0.001", "0"): (1, 1),
        ("1365627862757.064", "12.345"): (1365627862757064, 1365627862769409),
        # 2^42 µs up to 2^52 ns: the float is right to half a ns, and multiplied by 1000 in floats a quarter are not.
        ("4450000000000.123", "0.001"): (4450000000000123, 4450000000000124),
        ("4400000000001.777", "0"): (4400000000001777, 4400000000001777),
        ("8796093022207.999", "0.5"): (8796093022207999, 8796093022208499),  # the last ns below 2^43 µs
        # Unix time in µs with ns behind the point, as Kineto wrote it in 2023: floats are 0.25 µs apart here.
        ("1709226384123456.789", "3.001"): (1709226384123456789, 1709226384123459790),
        ("1709226384123456.790", "3.001"): (1709226384123456790, 1709226384123459791),
        # Around 2^53 µs floats skip whole µs; these are 2^53 - 1, 2^53 + 1 and a fraction there.
        ("9007199254740991", "1"): (9007199254740991000, 9007199254740992000),
        ("9007199254740993", "0"): (9007199254740993000, 9007199254740993000),
        ("9007199254740993.007", "0.003"): (9007199254740993007, 9007199254740993010),
        ("1.5e3", "2E0"): (1500000, 1502000),
    }
    for (ts, dur), want in table.items():
        # Alone, beside an integer, and in a block that has to be read with tolerance: the same ns.
        row = f'{{"ph":"X","cat":"cpu_op","name":"a","pid":1,"tid":1,"ts":{ts},"dur":{dur}}}'
        whole = '{"ph":"X","cat":"cpu_op","name":"b","pid":1,"tid":1,"ts":9007199254740993,"dur":3}'
        odd = '{"ph":"X","cat":"cpu_op","name":7,"pid":1,"tid":1,"ts":"9007199254740993.001","dur":3}'
        assert times(load(f"[{row}]"))[0] == want
        assert times(load(f"[{row},{whole}]")) == [want, (9007199254740993000, 9007199254740996000)]
        assert times(load(f"[{row},{odd}]")) == [want, (9007199254740993001, 9007199254740996001)]


def test_random_nanoseconds_survive_in_every_range(load):
    rng = random.Random(7)
    limits = (10**6, 10**12, 2**42 * 1000, 2**52, 2**43 * 1000, 2 * 10**18, 9 * 10**18)
    for low, high in pairwise(limits):
        want = [rng.randrange(low, high) for _ in range(500)]
        rows = [
            f'{{"ph":"X","cat":"kernel","name":"k","pid":0,"tid":7,"ts":{ns // 1000}.{ns % 1000:03d},"dur":0.001}}'
            for ns in want
        ]
        assert load(f"[{','.join(rows)}]").start_ns.tolist() == want


def test_a_length_below_zero_is_none(load):
    assert times(load(json.dumps([event(ts=5, dur=-1)]))) == [(5000, 5000)]


ODD = {
    "name is a number": ({"name": 7}, (10_000, 15_000)),
    "name is null": ({"name": None}, (10_000, 15_000)),
    "pid and tid are floats": ({"pid": 1.5, "tid": 2.0}, (10_000, 15_000)),
    "args is null": ({"args": None}, (10_000, 15_000)),
    "args is a list": ({"args": [1, 2]}, (10_000, 15_000)),
    "ids are objects": ({"args": {"correlation": {"id": 4}, "stream": [7]}}, (10_000, 15_000)),
    "ids do not fit 64 bits": ({"args": {"correlation": 2**64 - 1}}, (10_000, 15_000)),
    "times are texts": ({"ts": "10.001", "dur": "5"}, (10_001, 15_001)),
    "no length": ({"dur": None}, None),
    "no time": ({"ts": None}, None),
    "time is no number": ({"ts": "soon"}, None),
    "time is an object": ({"ts": {"us": 3}}, None),
    "time is beyond 64 bits of ns": ({"ts": 10**16}, None),
    "time is beyond a float": ({"ts": 10**400}, None),
    "length is beyond 64 bits of ns": ({"dur": 1e300}, None),
}


@pytest.mark.parametrize("oddity", ODD)
def test_an_event_of_odd_types_is_read_where_it_makes_sense_and_counted_where_not(load, oddity):
    fields, want = ODD[oddity]
    good = [event("before", ts=1, dur=1), launch(4), event("after", ts=90, dur=1)]

    events = load(json.dumps([good[0], event() | fields, *good[1:]]))

    rest = [(1_000, 2_000), (40_000, 45_000), (90_000, 91_000)]
    assert sorted(times(events)) == sorted([*rest, want] if want else rest)
    assert events.num_events == 4
    assert events.num_dropped == (want is None)


def test_entries_that_are_no_events_are_counted(load):
    events = load(json.dumps([event(), 5, None, "text", [], {"ph": "M", "name": 3}]))

    assert (events.num_events, events.num_dropped, len(events.kind)) == (6, 4, 1)


def test_an_event_without_a_time_is_counted_not_put_at_zero(load):
    timeless = {"ph": "X", "cat": "cpu_op", "name": "a", "pid": 1, "tid": 1, "dur": 3}

    events = load(json.dumps([timeless, event(ts=10**9)]))

    assert times(events) == [(10**12, 10**12 + 5000)]
    assert events.num_dropped == 1


def test_ids_written_as_texts_still_join(load):
    args = {"device": "0", "stream": "7", "correlation": "12", "external id": "9"}

    events = load(json.dumps([event("k", cat="kernel", args=args)]))

    assert [c.tolist() for c in (events.device, events.stream, events.correlation, events.external)] == [
        [0],
        [7],
        [12],
        [9],
    ]


def test_a_thread_written_as_number_and_as_text_is_one(load):
    events = load(json.dumps([event(pid=5, tid=6), event(pid="5", tid="6"), event(pid=5, tid="7")]))

    assert events.thread.tolist() == [0, 0, 1]
    assert events.threads == (("5", "6"), ("5", "7"))


@pytest.mark.parametrize("number", ["NaN", "nan", "-nan", "Infinity", "-Infinity", "inf", "-inf"])
def test_numbers_that_json_does_not_have_cost_no_event(load, number):
    text = json.dumps([event("a: nan, b"), event("c", args={"correlation": 3, "warps per SM": "@", "x": "@"})])

    events = load(text.replace('"@"', number))

    assert [events.names[name] for name in events.name] == ["a: nan, b", "c"]
    assert events.correlation.tolist() == [-1, 3]
    assert events.num_dropped == 0


def test_bytes_that_are_not_utf8_cost_no_event(load):
    events = load(json.dumps([event("bad @"), event("good")]).encode().replace(b"@", b"\xff"))

    assert [events.names[name] for name in events.name] == ["bad \ufffd", "good"]


def test_category_names_of_before_2022_are_known(load):
    old = [("Operator", "aten::mm"), ("Operator", "ProfilerStep#3"), ("Runtime", "cudaLaunchKernel")]
    old += [
        ("Kernel", "k"),
        ("Memcpy", "Memcpy DtoH"),
        ("Memset", "Memset (Device)"),
        ("Trace", "PyTorch Profiler (0)"),
    ]

    events = load(json.dumps([event(name, cat=cat) for cat, name in old]))

    assert events.kind.tolist() == [
        EventKind.OP,
        EventKind.ANNOTATION,
        EventKind.RUNTIME,
        EventKind.KERNEL,
        EventKind.MEMCPY,
        EventKind.MEMSET,
    ]


REFUSED = {
    "an empty file": (b"", "empty file"),
    "white space": (b" \n ", "empty file"),
    "text": (b"Traceback (most recent call last):", "not JSON"),
    "binary": (b"\x00\x01\x02", "not JSON"),
    "JSON without traceEvents": (b'{"schemaVersion": 1}', "without a traceEvents list"),
    "traceEvents that are no list": (b'{"traceEvents": {"a": 1}}', "without a traceEvents list"),
    "no events": (b'{"traceEvents": []}', "empty trace"),
    "an empty list": (b"[]", "empty trace"),
    "cut before the first event ended": (b'{"traceEvents": [{"ph": "X", "na', "empty trace"),
    "garbage among the events": (b'{"traceEvents": [{"ph": "X"}, oops, {"ph": "X"}]}', "not valid JSON"),
    "a comma after the last event": (b'{"traceEvents": [{"ph": "X"},]}', "trailing comma"),
    "truncated gzip": (gzip.compress(PLAIN.encode())[:-40], "damaged or truncated"),
    "damaged gzip": (gzip.compress(PLAIN.encode())[:99] + b"\0" * 60, "damaged or truncated|check|Error|error"),
    "damaged zstandard": (zstandard.compress(PLAIN.encode()) + b"more", "damaged or truncated"),
    "endless nesting": (b'{"traceEvents": [' + b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_what_is_no_trace_is_refused_in_one_line_naming_the_file(load, damage):
    content, reason = REFUSED[damage]

    with pytest.raises(TraceFormatError, match=rf"^[^\n]*bad\.json: [^\n]*(?:{reason})[^\n]*$"):
        load(content, "bad.json")


def test_a_missing_file_and_a_folder_are_refused_in_one_line(tmp_path):
    with pytest.raises(TraceFormatError, match=r"^[^\n]*gone\.json: No such file or directory$"):
        read_events(tmp_path / "gone.json")
    with pytest.raises(TraceFormatError, match=r"^[^\n]*: Is a directory$"):
        read_events(tmp_path)


def whole_events(text: str) -> int:
    """How many of EVENTS end before the end of this text; each ends with the brace after its args or its length."""
    ends, at = [], PLAIN.index("[", PLAIN.index("traceEvents"))
    for item in EVENTS:
        at = PLAIN.index(json.dumps(item), at) + len(json.dumps(item))
        ends.append(at)
    return sum(end <= len(text) for end in ends)


@pytest.mark.parametrize("block_bytes", [700, 1 << 22])
def test_a_file_cut_off_anywhere_keeps_all_whole_events_and_says_so(load, block_bytes):
    start = PLAIN.index("[", PLAIN.index("traceEvents"))
    for length in [*range(start, len(PLAIN), 97), *range(start + 200, start + 600)]:
        want = whole_events(PLAIN[:length])
        if want == 0:
            with pytest.raises(TraceFormatError):
                load(PLAIN[:length], block_bytes=block_bytes)
            continue

        events = load(PLAIN[:length], block_bytes=block_bytes)

        assert events.is_truncated
        assert (events.num_events, events.num_dropped) == (want, 0)
        assert events.device_name == "NVIDIA H200"


def test_a_file_cut_off_after_its_events_keeps_them_all_and_says_so(load):
    text = json.dumps({"traceEvents": EVENTS, **AROUND})

    for length in range(text.index('"schemaVersion"'), len(text), 7):
        assert load(text[:length]).is_truncated
    assert not load(text).is_truncated


def test_any_cut_of_any_form_is_read_or_refused_never_worse(load, rules):
    nested = [event(ts=n, args={"stack": [{"a": n}, {"b": "}, {"}], "x": -1.5e-3}) for n in range(60)]
    texts = [PLAIN.encode(), json.dumps(EVENTS + nested, indent=1).encode(), FORMS["gzip"], FORMS["zstandard"]]
    for text in texts:
        for length in range(0, len(text), 997 if len(text) > 5000 else 7):
            try:
                events = load(text[:length], block_bytes=2048)
                assert Recording(events, Terms(rules=rules)).breakdown.steps
            except TraceFormatError as error:
                assert "\n" not in str(error)  # noqa: PT017 - most cuts do not raise


def test_a_large_file_cut_off_or_damaged_is_done_in_one_pass(load):
    rows = [json.dumps(event(ts=n, args={"stack": [{"a": 1}, {"b": 2}]})) for n in range(200_000)]
    text = '{"traceEvents": [' + ", ".join(rows)
    inside_a_list = text[: text.rindex("{")]
    start = time.process_time()

    truncated = load(inside_a_list)
    with pytest.raises(TraceFormatError, match="not valid JSON"):
        load(text.replace(', "dur"', ', @ "dur"', 1))

    assert truncated.num_events == 200_000 - 1
    assert len(text) > 20_000_000
    assert time.process_time() - start < 15  # a pass over 20 MB takes half a second; a quadratic one took hours


def test_one_huge_event_costs_time_in_proportion_to_its_size(load):
    huge = event(args={"stack": [{"frame": "x" * 50}] * 100_000})

    events = load(json.dumps([event(), huge, event()]), block_bytes=4096)

    assert events.num_events == 3


def test_an_activity_whose_time_was_not_recorded_is_dropped_and_counted(load):
    """CUPTI tells that by a start and an end of zero, on a clock that counts from 1970."""
    now_us = 1_700_000_000_000_000
    events = [event("op", ts=now_us), kernel(1) | {"ts": 0, "dur": 0}, kernel(2) | {"ts": now_us + 5}]

    found = load(json.dumps(events))

    assert (found.num_events, found.num_dropped) == (3, 1)
    assert found.correlation[found.kind == EventKind.KERNEL].tolist() == [2]
    assert found.first_ns == now_us * 1000


def test_an_activity_of_no_length_at_time_zero_is_kept_where_time_begins_there(load):
    found = load(json.dumps([event("op", ts=0), kernel(1) | {"ts": 0, "dur": 0}]))

    assert (found.num_events, found.num_dropped) == (2, 0)


def test_a_pipe_is_read_like_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(pipe.write_bytes, FORMS["gzip"])
        found = read_events(pipe)
        writing.result()

    assert found.num_events == len(EVENTS)
