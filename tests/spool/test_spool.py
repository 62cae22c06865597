"""The spool: captures are there whole or not at all, within bounds, and every reader may die at any byte."""

import os
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from taxbreak_vllm.model.errors import SpoolError
from taxbreak_vllm.model.step import Batch, GraphMode, Phase, Server, StepInfo
from taxbreak_vllm.model.worker import CaptureRequest, Control, WorkerState
from taxbreak_vllm.spool.layout import MARKER
from taxbreak_vllm.spool.spool import Spool
from taxbreak_vllm.spool.usage import SpoolUsage

SERVER = Server(server_id="server-a")
NOBODY = 65534


def info(step_id: str, rank: int = 0) -> StepInfo:
    return StepInfo(
        step_id=step_id,
        step_index=1,
        server=Server(server_id="server-a", rank=rank),
        phase=Phase.DECODE,
        batch=Batch(requests=1),
        graph_mode=GraphMode.NONE,
        started_unix_ns=1,
        window_ns=2,
    )


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", max_bytes=10_000, max_captures=4)


@pytest.fixture
def nobody() -> Iterator[tuple[Spool, Callable[[Callable[[], None]], None]]]:
    """A spool of the user nobody, and how to act as that one."""
    if os.getuid() != 0:
        pytest.skip("only root can act as another user")

    def act_as_nobody(act: Callable[[], None]) -> None:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # other threads may be running
            child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                act()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    with tempfile.TemporaryDirectory() as folder:  # not below pytest's own, which is root's alone
        os.chmod(folder, 0o755)
        (root := Path(folder) / "spool").mkdir(mode=0o700)
        os.chown(root, NOBODY, NOBODY)
        yield Spool(root, max_bytes=10_000, max_captures=4), act_as_nobody


def put(spool: Spool, step_id: str, size: int = 100, rank: int = 0) -> list[str]:
    lost = spool.put(info(step_id, rank), lambda path: path.write_bytes(b"x" * size) and None)
    return [capture.step_id for capture in lost]


def test_what_is_put_is_listed_read_and_found(spool):
    put(spool, "one")
    put(spool, "two", rank=3)

    assert [capture.step_id for capture in spool.captures()] == ["one", "two"]
    found = spool.find("two")
    assert found is not None
    assert found.read_info().server.rank == 3
    assert found.trace_path.read_bytes() == b"x" * 100


def test_a_link_is_no_capture_no_rank_and_no_server_as_it_may_lead_out_of_the_spool(spool, tmp_path):
    put(spool, "one")
    (outside := tmp_path / "outside").mkdir()
    inside = spool.root / "server-a" / "0"
    for link, target in (
        (inside / "two", inside / "one"),
        (inside.with_name("1"), inside),
        (spool.root / "b", outside),
    ):
        link.symlink_to(target)

    assert [capture.path for capture in spool.captures()] == [inside / "one"]
    assert spool.find("two") is None
    assert spool.states() == []


def test_a_state_that_is_no_text_is_left_out(spool):
    spool.put_state(WorkerState(server=SERVER, started_unix_ns=1, updated_unix_ns=2, enabled=True))
    path = spool.root / "server-a" / "0" / "state.json"
    path.write_bytes(path.read_bytes().replace(b"server-a", b"server-\x80"))

    assert spool.states() == []


def test_a_writer_that_dies_leaves_nothing_to_read(spool):
    def dies(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        spool.put(info("one"), dies)

    assert spool.captures() == []


def test_the_oldest_captures_go_first_and_those_nobody_read_are_named(spool):
    for step_id in ("a", "b", "c", "d"):
        put(spool, step_id)
    spool.mark(spool.captures()[0], "analyzed")

    assert put(spool, "e") == []
    assert put(spool, "f") == ["b"]
    assert [capture.step_id for capture in spool.captures()] == ["c", "d", "e", "f"]


def test_the_spool_never_exceeds_its_bytes(spool):
    for number in range(20):
        put(spool, f"s{number}", size=3000)

        assert spool.size_bytes() <= 10_000


def test_a_capture_larger_than_the_spool_is_refused_and_costs_nothing(spool):
    put(spool, "small")

    with pytest.raises(SpoolError, match="exceeds"):
        put(spool, "large", size=20_000)

    assert [capture.step_id for capture in spool.captures()] == ["small"]


def test_a_marked_capture_is_pending_no_more_and_keeps_its_age(spool):
    put(spool, "one")
    put(spool, "two")
    first = spool.captures()[0]

    spool.mark(first, "analyzed")

    assert [capture.step_id for capture in spool.pending()] == ["two"]
    assert spool.captures()[0] == first


def test_marking_an_evicted_capture_is_no_error(spool):
    put(spool, "one")
    capture = spool.captures()[0]
    spool.remove(capture)

    spool.mark(capture, "analyzed")

    assert spool.captures() == []


def test_only_one_claims_the_spool_at_a_time(spool):
    other = Spool(spool.root, max_bytes=1, max_captures=1)

    with spool.claim() as mine, other.claim() as theirs:
        assert (mine, theirs) == (True, False)
    with other.claim() as theirs:
        assert theirs


@pytest.mark.parametrize("step_id", ["../one", "", ".hidden", "a/b", "one\n", "x" * 200])
def test_an_id_that_is_no_plain_name_finds_and_stores_nothing(spool, step_id):
    put(spool, "one")

    assert spool.find(step_id) is None
    with pytest.raises(SpoolError, match="cannot name"):
        put(spool, step_id)


def test_requests_are_read_replaced_and_taken_back_only_by_their_own_id(spool):
    spool.put_request("server-a", CaptureRequest(capture_id="x", steps=1))
    spool.put_request("server-a", CaptureRequest(capture_id="y", steps=2, phase=Phase.DECODE))

    spool.cancel_request("server-a", "x")
    standing = spool.read_request("server-a")
    assert standing is not None
    assert standing.capture_id == "y"
    spool.cancel_request("server-a", "y")
    assert spool.read_request("server-a") is None


def test_control_is_kept_where_a_later_one_is_silent(spool):
    spool.put_control("server-a", Control(control_id="x", enabled=False, sample_every=7))

    merged = spool.put_control("server-a", Control(control_id="y", enabled=True, updated_unix_ns=3))

    assert merged == Control(control_id="y", enabled=True, sample_every=7, updated_unix_ns=3)
    assert spool.read_control("server-a") == merged
    assert spool.read_control("server-b") is None


def test_every_message_that_comes_goes_or_is_replaced_changes_the_stamp(spool):
    stamps = [spool.messages_stamp("server-a")]
    for number in range(20):
        spool.put_request("server-a", CaptureRequest(capture_id="x", steps=1))
        stamps.append(spool.messages_stamp("server-a"))
        spool.put_control("server-a", Control(control_id=str(number)))
        stamps.append(spool.messages_stamp("server-a"))
        assert spool.messages_stamp("server-a") == stamps[-1]
    spool.cancel_request("server-a", "x")
    stamps.append(spool.messages_stamp("server-a"))

    assert all(before != after for before, after in pairwise(stamps))


def test_states_are_read_and_garbage_is_left_out(spool):
    spool.put_state(WorkerState(server=SERVER, started_unix_ns=1, updated_unix_ns=2, enabled=True))
    (spool.root / "server-b" / "0").mkdir(parents=True)
    (spool.root / "server-b" / "0" / "state.json").write_text("{")

    assert [state.server.server_id for state in spool.states()] == ["server-a"]


def test_folders_are_0700_and_files_0600_whatever_the_umask(spool):
    umask = os.umask(0)
    try:
        put(spool, "one")
        spool.put_state(WorkerState(server=SERVER, started_unix_ns=1, updated_unix_ns=2, enabled=True))
        with spool.claim():
            pass
    finally:
        os.umask(umask)

    for folder, _, files in os.walk(spool.root):
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert {os.stat(os.path.join(folder, name)).st_mode & 0o777 for name in files} <= {0o600}


def test_sweeping_removes_what_dead_writers_and_servers_left(spool):
    put(spool, "one")
    (spool.root / "server-a" / "0" / ".two.tmp").mkdir()
    spool.put_state(
        WorkerState(server=Server(server_id="server-b"), started_unix_ns=1, updated_unix_ns=2, enabled=True)
    )

    assert spool.sweep(older_than_ns=1) == 0
    assert spool.sweep(older_than_ns=time.time_ns() + 10**12) == 3
    assert [capture.step_id for capture in spool.captures()] == ["one"]
    assert not (spool.root / "server-b").exists()


def fill_with_others(folder: Path) -> dict[str, bytes]:
    """Put files of somebody else into a folder, some of them where a spool has its own."""
    names = (".ssh/id", "docs/thesis.txt", "photos/2024/a.jpg", "photos/2023/trip/a.jpg", "x/0/.cache/one", "note")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of somebody")
    return read_all(folder)


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_holds_anything_else_is_no_spool_and_left_as_it_is(tmp_path):
    before, mode = fill_with_others(tmp_path), tmp_path.stat().st_mode
    spool = Spool(tmp_path, max_bytes=10_000, max_captures=1)

    for use in (spool.make, lambda: put(spool, "one"), lambda: spool.claim().__enter__()):
        with pytest.raises(SpoolError, match="which is no part of a spool; set TAXBREAK_SPOOL to a new or empty"):
            use()

    assert read_all(tmp_path) == before
    assert tmp_path.stat().st_mode == mode


def test_what_others_put_into_a_spool_is_neither_evicted_nor_swept(spool):
    spool.make()
    theirs = fill_with_others(spool.root)
    for number in range(6):
        put(spool, f"s{number}")

    spool.sweep(older_than_ns=time.time_ns() + 10**12)

    assert len(spool.captures()) == 4
    assert theirs.items() <= read_all(spool.root).items()


def test_a_spool_without_its_mark_is_taken_over_with_all_that_may_be_in_one(spool):
    put(spool, "one")
    spool.put_state(WorkerState(server=SERVER, started_unix_ns=1, updated_unix_ns=2, enabled=True))
    spool.put_request("server-a", CaptureRequest(capture_id="x", steps=1))
    spool.put_control("server-b", Control(control_id="x"))
    with spool.claim():
        pass
    spool.mark(spool.captures()[0], "analyzed")
    for name in ("results.sqlite3", "results.sqlite3-wal", "results.sqlite3-shm", "baselines.sqlite3"):
        (spool.root / name).touch()
    (spool.root / "lost+found").mkdir()
    (spool.root / "server-a" / "0" / ".two.tmp").mkdir()
    (spool.root / "server-a" / "0" / ".state.json.7.tmp").touch()
    (spool.root / "server-b" / ".control.json.7.tmp").touch()
    (spool.root / MARKER).unlink()

    put(spool, "three")

    assert (spool.root / MARKER).stat().st_mode & 0o777 == 0o600
    assert [capture.step_id for capture in spool.captures()] == ["one", "three"]


def test_a_spool_that_is_deleted_under_its_writer_is_made_anew_with_its_mark(spool):
    put(spool, "one")
    shutil.rmtree(spool.root)

    put(spool, "two")

    assert (spool.root / MARKER).is_file()
    assert [capture.step_id for capture in spool.captures()] == ["two"]


def test_many_may_begin_a_spool_at_once(tmp_path):
    def begin(number: int) -> None:
        spool = Spool(tmp_path / str(number // 8), max_bytes=10_000, max_captures=8)
        put(spool, f"s{number}", rank=number % 8)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(begin, range(160)))

    assert all(len(Spool(root, max_bytes=1, max_captures=1).captures()) == 8 for root in tmp_path.iterdir())


def test_what_another_user_keeps_to_himself_is_not_there_and_said_once(nobody, caplog):
    spool, act_as_nobody = nobody
    (spool.root / "lost+found").mkdir(mode=0o700)
    put(Spool(spool.root, max_bytes=10_000, max_captures=4), "of-root")

    def act() -> None:
        spool.put_state(
            WorkerState(server=Server(server_id="mine"), started_unix_ns=1, updated_unix_ns=2, enabled=True)
        )
        assert spool.captures() == []
        assert spool.find("of-root") is None
        assert [state.server.server_id for state in spool.states()] == ["mine"]
        assert SpoolUsage(spool).read() == (0, None)
        assert spool.sweep(older_than_ns=1) == 0
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith(f"{spool.root}/server-a: may not be read")

    act_as_nobody(act)


@pytest.mark.parametrize("mode", [0o777, 0o2770, 0o1777])
def test_a_spool_that_others_can_write_to_is_closed_to_them_if_it_is_empty_or_marked(spool, mode):
    spool.root.mkdir()
    spool.root.chmod(mode)
    (spool.root / "lost+found").mkdir()  # of the volume
    spool.make()
    modes = [spool.root.stat().st_mode & 0o7777]
    put(spool, "one")
    spool.root.chmod(mode)

    put(spool, "two")

    assert [*modes, spool.root.stat().st_mode & 0o7777] == [0o700, 0o700]


def test_what_others_may_have_put_into_a_folder_is_not_taken_over(spool):
    put(spool, "one")
    (spool.root / MARKER).unlink()
    spool.root.chmod(0o777)

    with pytest.raises(SpoolError, match="others may have written to it; set TAXBREAK_SPOOL"):
        put(spool, "two")


def test_a_link_to_a_folder_is_no_spool(spool):
    (elsewhere := spool.root.with_name("elsewhere")).mkdir()
    spool.root.symlink_to(elsewhere)

    with pytest.raises(SpoolError, match="spool: is a link; set TAXBREAK_SPOOL"):
        put(spool, "one")
    assert list(elsewhere.iterdir()) == []


def test_a_link_in_place_of_a_lock_is_not_followed(spool):
    (precious := spool.root.with_name("precious")).write_text("kept")
    spool.make()
    for name in (".writer.lock", ".analyzer.lock"):
        (spool.root / name).symlink_to(precious)

    with pytest.raises(SpoolError, match="symbolic links"):
        put(spool, "one")
    with pytest.raises(SpoolError, match=r"\.analyzer\.lock"), spool.claim():
        pass
    assert precious.read_text() == "kept"


def test_a_folder_of_another_user_is_no_spool_and_gives_no_orders(nobody):
    spool, act_as_nobody = nobody
    spool.put_control("server-a", Control(control_id="x"))
    os.chown(spool.root, 0, 0)
    for path in (spool.root, *spool.root.rglob("*")):
        path.chmod(0o777)

    def act() -> None:
        assert spool.read_control("server-a") is None
        with pytest.raises(SpoolError, match=r"belongs to another user \(0\); set TAXBREAK_SPOOL"):
            put(spool, "one")

    act_as_nobody(act)


def test_in_a_volume_of_a_pod_s_group_a_folder_of_our_own_is_a_spool(nobody):
    """As Kubernetes mounts one with an fsGroup, and as it changes what is in it when it mounts it again."""
    spool, act_as_nobody = nobody
    volume = spool.root
    os.chown(volume, 0, NOBODY)
    volume.chmod(0o2777)
    spool = Spool(volume / "spool", max_bytes=10_000, max_captures=4)

    act_as_nobody(lambda: put(spool, "one") and None)
    spool.root.chmod(0o2770)
    act_as_nobody(lambda: put(spool, "two") and None)

    assert [capture.step_id for capture in spool.captures()] == ["one", "two"]
    assert spool.root.stat().st_mode & 0o777 == 0o700


def test_a_spool_that_cannot_be_written_is_one_error_with_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file", max_bytes=1000, max_captures=1)

    with pytest.raises(SpoolError, match="file"):
        put(spool, "one")
    with pytest.raises(SpoolError, match="file"):
        spool.put_state(WorkerState(server=SERVER, started_unix_ns=1, updated_unix_ns=2, enabled=True))
    assert spool.captures() == []
