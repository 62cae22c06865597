"""A large trace waits in the spool within its bound, is no capture, and leaves nothing, however its analysis ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taxbreak_vllm.model.errors import SpoolError, TaxbreakError
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.spool.spill import SpillRoom
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.spool.usage import SpoolUsage
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.large.spill import open_trace
from taxbreak_vllm.trace.read.kineto import read_events

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "tests" / "data" / "traces" / "a100_hta_graphs_step551.json.gz"
REPEAT = ROOT / "benchmarks" / "repeat_trace.py"
CAPTURE_BYTES = 400_000

# Begins to spill, tells that, and waits to be killed.
SPILLS = """
import sys, time
from pathlib import Path
from taxbreak_vllm.spool.spill import SpillRoom
from taxbreak_vllm.spool.spool import Spool
room = SpillRoom(Spool(Path(sys.argv[1]), max_bytes=2**20, max_captures=9))
file = room.open()
room.claim(file, 300_000)
print("spilled", flush=True)
time.sleep(60)
"""


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", max_bytes=2**20, max_captures=9)


@pytest.fixture
def put(spool):
    def put(step_id, *, is_analyzed, size=CAPTURE_BYTES):
        info = StepInfo(
            step_id=step_id,
            step_index=1,
            server=Server(server_id="s"),
            phase=Phase.DECODE,
            batch=Batch(),
            graph_mode=GraphMode.NONE,
            started_unix_ns=1,
            window_ns=2,
        )
        lost = spool.put(info, lambda path: path.write_bytes(b"x" * size) and None)
        if is_analyzed:
            spool.mark(spool.find(step_id), "analyzed")
        return [capture.step_id for capture in lost]

    return put


@pytest.fixture
def captured(spool):
    return lambda: [capture.step_id for capture in spool.captures()]


def spills(spool):
    return [path.name for path in spool.root.iterdir() if path.name.startswith(".spill-")]


def test_a_large_trace_of_a_gpu_is_measured_through_the_spool_within_its_bound(tmp_path, put):
    path = tmp_path / "many.json"
    subprocess.run([sys.executable, REPEAT, TRACE, path, "10"], check=True)
    spool = Spool(tmp_path / "spool", max_bytes=48 * 2**20, max_captures=9)
    whole = Recording(read_events(path)).breakdown.to_json()
    room, peaks = SpillRoom(spool), []

    class Watched:
        folder, remedy, open = room.folder, room.remedy, room.open

        def claim(self, file, size_bytes):
            room.claim(file, size_bytes)
            peaks.append(sum((spool.root / name).stat().st_size for name in spills(spool)))

    with open_trace(path, spill_above_bytes=0, rows_per_part=5000, find_room=Watched) as spilled:
        in_parts = Recording(spilled).breakdown.to_json()

    assert in_parts == whole
    assert 2**20 < max(peaks) <= spool.max_bytes
    assert spills(spool) == []


def test_it_is_no_capture_and_counts_as_none(spool, put, captured):
    put("one", is_analyzed=False)
    room = SpillRoom(spool)
    with room.open() as file:
        room.claim(file, 300_000)

        assert (spills(spool), captured()) == ([Path(file.name).name], ["one"])
        assert spool.size_bytes() < 300_000 + CAPTURE_BYTES
        assert SpoolUsage(spool).read()[0] == spool.size_bytes()
        assert Path(file.name).stat().st_mode & 0o777 == 0o600


def test_analyzed_captures_make_way_for_it_the_oldest_first(spool, put, captured):
    put("old", is_analyzed=True)
    put("new", is_analyzed=True)
    room = SpillRoom(spool)

    with room.open() as file:
        room.claim(file, 600_000)

        assert captured() == ["new"]


def test_captures_that_wait_for_their_analysis_do_not_and_there_is_one_line(spool, put, captured):
    put("analyzed", is_analyzed=True)
    put("waits", is_analyzed=False)
    room = SpillRoom(spool)

    with room.open() as file, pytest.raises(TaxbreakError) as error:
        room.claim(file, 700_000)

    assert re.fullmatch(
        r"\S+/spool: no room for 0\.7 MB of a large trace within the spool's 1\.05 MB; set TAXBREAK_SPOOL_MAX_BYTES .*",
        str(error.value),
    )
    assert captured() == ["analyzed", "waits"]
    assert spills(spool) == []


def test_what_is_stored_meanwhile_leaves_it_its_room(spool, put, captured):
    put("first", is_analyzed=False)
    room = SpillRoom(spool)
    with room.open() as file:
        room.claim(file, 500_000)

        assert put("second", is_analyzed=False) == ["first"]


def test_two_share_the_room(spool):
    room, other = SpillRoom(spool), SpillRoom(spool)
    with room.open() as one, other.open() as two:
        room.claim(one, 600_000)
        with pytest.raises(TaxbreakError, match="no room"):
            other.claim(two, 600_000)
        other.claim(two, 400_000)


@pytest.mark.parametrize("notice", ["sweep", "put"])
def test_what_a_killed_analysis_left_goes_when_it_is_noticed_and_what_lives_stays(spool, put, notice):
    child = subprocess.Popen([sys.executable, "-c", SPILLS, spool.root], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "spilled\n"
    act = {"sweep": lambda: spool.sweep(older_than_ns=0), "put": lambda: put("one", is_analyzed=True)}[notice]
    act()
    assert len(spills(spool)) == 1

    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert len(spills(spool)) == 1
    if notice == "put":
        spool.remove(spool.find("one"))
    act()

    assert spills(spool) == []


def test_a_disk_that_takes_no_more_is_one_line(spool):
    script = (
        "import sys, numpy as np; from pathlib import Path; from taxbreak_vllm.trace.large.bins import Bins\n"
        "from taxbreak_vllm.spool.spill import SpillRoom; from taxbreak_vllm.spool.spool import Spool\n"
        "room = lambda: SpillRoom(Spool(Path(sys.argv[1]), max_bytes=2**30, max_captures=9))\n"
        "with Bins(np.int64, 1, room) as bins: bins.add(np.zeros(10**5, np.int64), np.zeros(10**5, np.intp))"
    )
    limited = ["sh", "-c", 'ulimit -f 16; exec "$@"', "sh", sys.executable, "-c", script, spool.root]

    done = subprocess.run(limited, capture_output=True, text=True, check=False)

    assert done.stderr.splitlines()[-1] == (
        f"taxbreak_vllm.model.errors.TaxbreakError: {spool.root}: File too large: a large trace is analyzed through a "
        "file there; set TAXBREAK_SPOOL_MAX_BYTES higher, or unset TAXBREAK_SPOOL to use TMPDIR"
    )
    assert spills(spool) == []


def test_a_folder_that_is_no_spool_is_refused(tmp_path):
    (folder := tmp_path / "elsewhere").mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "theirs").touch()

    with pytest.raises(SpoolError, match="others may have written to it"):
        SpillRoom(Spool(folder, max_bytes=2**20, max_captures=9)).open()


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_the_command_line_spills_into_the_spool_that_is_set_and_tells_where_it_cannot(tmp_path):
    """With half a gigabyte of JSON, and a temporary folder that takes nothing."""
    path, spool = tmp_path / "huge.json", tmp_path / "spool"
    copies = 1 + 520_000_000 // len(subprocess.run(["gzip", "-dc", TRACE], capture_output=True, check=True).stdout)
    subprocess.run([sys.executable, REPEAT, TRACE, path, str(copies)], check=True)

    def analyze(max_bytes):
        env = os.environ | {
            "TAXBREAK_SPOOL": str(spool),
            "TAXBREAK_SPOOL_MAX_BYTES": str(max_bytes),
            "TMPDIR": "/nowhere",
        }
        command = [sys.executable, "-m", "taxbreak_vllm.cli", "analyze", "--json", path]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    refused = analyze(16 * 2**20)
    done = analyze(2**30)

    assert refused.returncode == 1
    assert re.fullmatch(rf"taxbreak: {re.escape(str(spool))}: no room for .*\n", refused.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")
    assert [entry.name for entry in spool.iterdir() if "spill" in entry.name] == []
