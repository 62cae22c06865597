import os
from types import SimpleNamespace

import pytest

from taxbreak_vllm.doctor import folder
from taxbreak_vllm.doctor.folder import spool_owner, spool_space
from taxbreak_vllm.spool.spool import Spool


@pytest.fixture
def root(tmp_path):
    spool = Spool(tmp_path / "spool", max_bytes=2**28, max_captures=512)
    spool.make()
    return spool.root


def test_a_spool_of_ours_is_fine(root):
    assert spool_owner(root).grade == "ok"


def test_a_spool_that_is_not_there_is_made_later(tmp_path):
    found = spool_owner(tmp_path / "a" / "b")

    assert (found.grade, found.seen) == ("ok", f"absent: {tmp_path / 'a' / 'b'} is made on first use")
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_cannot_be_made_is_found(tmp_path):
    (tmp_path / "file").write_text("")

    assert spool_owner(tmp_path / "file" / "spool").grade == "fail"


def test_a_spool_of_another_user_is_found(root):
    found = spool_owner(root, uid=12345)

    assert found.grade == "fail"
    assert f"belongs to user {os.getuid()}, and this is 12345" in found.seen


def test_a_link_and_a_file_are_no_spool(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "file").write_text("")

    assert spool_owner(tmp_path / "link").seen.endswith("is a link")
    assert spool_owner(tmp_path / "file").seen.endswith("is no folder")


def test_a_folder_that_others_may_have_written_to_is_found(tmp_path):
    (tmp_path / "theirs").write_text("")
    tmp_path.chmod(0o777)

    assert spool_owner(tmp_path).grade == "fail"


def test_a_folder_with_other_things_in_it_is_a_warning(tmp_path):
    (tmp_path / "mine").write_text("")
    tmp_path.chmod(0o700)

    assert spool_owner(tmp_path).grade == "warning"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_spool_its_owner_may_not_write_to_is_found(root):
    root.chmod(0o500)
    os.chown(root, 12345, -1)

    assert spool_owner(root, uid=12345).seen.endswith("its owner may not write there")


@pytest.mark.parametrize(("free", "grade"), [(2**33, "ok"), (2**27, "warning"), (2**20, "fail")])
def test_a_disk_without_room_for_the_spools_bound_is_found(root, monkeypatch, free, grade):
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    found = spool_space(Spool(root, max_bytes=2**28, max_captures=512))

    assert found.grade == grade
    assert found.seen.startswith("0 of 512 captures, 0 of 256 MiB, ")
