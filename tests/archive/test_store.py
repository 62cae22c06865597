"""An archive in a folder and in S3: put once, read back whole, and what goes wrong is told as what it is."""

from datetime import date

import pytest
from object_store import AWAY, FORBIDDEN, FULL, HANGING, KEY, LOST, SECRET, UNAVAILABLE, FaultProxy

from taxbreak_vllm.archive.layout import Key
from taxbreak_vllm.archive.store import Store
from taxbreak_vllm.model.errors import ArchiveError, Away, Refused

NS_PER_DAY = 86_400 * 10**9


def key_of(data, *, kind="captures", model="meta-llama/Llama 3.1", day=20_000, server="s/é%"):
    return Key.of(kind, data, suffix="tar", unix_ns=day * NS_PER_DAY, model=model, gpu="H100 80GB", server=server)


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path):
    if request.param == "file":
        (tmp_path / "share d").mkdir()
        return Store(f"file://{tmp_path}/share%20d")
    monkeypatch, s3 = request.getfixturevalue("monkeypatch"), request.getfixturevalue("bucket")
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return Store(s3.url)


@pytest.fixture
def through(bucket, monkeypatch):
    """A store behind a proxy that fails as it is told."""
    with FaultProxy(bucket) as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        yield Store(bucket.url, timeout_s=1, retry_s=1), proxy


def test_an_object_is_put_once_listed_and_read_back_whatever_is_in_its_name(store):
    data = b"\x00content" * 10
    key = key_of(data)

    assert store.put(key, data)
    assert not store.put(key, data)
    assert store.get(key) == data
    assert list(store.list("captures")) == [key]
    assert list(store.list("iterations")) == []


def test_a_listing_is_of_a_kind_and_of_the_days_and_the_model_asked_for(store):
    keys = [
        key_of(b"%d" % number, kind=kind, model=model, day=20_000 + number)
        for number, (kind, model) in enumerate(
            (kind, model)
            for kind in ("captures", "tables/v1/iterations")
            for model in ("a", "a/b", "")
            for _ in range(2)
        )
    ]
    for number, key in enumerate(keys):
        store.put(key, b"%d" % number)

    def listed(*asked, **more):
        return sorted(store.list(*asked, **more))

    since = keys[2].date
    assert listed("captures") == sorted(keys[:6])
    assert listed("tables/v1/iterations") == sorted(keys[6:])
    assert listed("captures", model="a") == sorted(keys[:2])
    assert listed("captures", since=since) == sorted(keys[2:6])
    assert listed("captures", since=since, model="a") == []
    assert listed("captures", since=keys[1].date, model="a") == [keys[1]]
    assert listed("captures", since=date(2100, 1, 1)) == []


def test_a_large_object_goes_in_parts(store):
    data = bytes(range(256)) * (13 * 2**20 // 256)
    key = key_of(data)

    assert store.put(key, data)
    assert store.get(key) == data
    assert not store.put(key, data)


def test_an_object_that_is_not_there_or_not_what_its_name_says_is_told(store):
    key = key_of(b"right")

    with pytest.raises(ArchiveError, match="not there"):
        store.get(key)
    store.put(key, b"wrong")
    with pytest.raises(ArchiveError, match="damaged"):
        store.get(key)


def test_a_part_of_an_object_is_replaced_by_the_whole(store):
    key = key_of(b"whole content")
    store.put(key, b"whole")

    assert store.put(key, b"whole content")
    assert store.get(key) == b"whole content"


def test_what_is_somebody_elses_is_not_listed(tmp_path):
    store = Store(f"file://{tmp_path}")
    store.put(key_of(b"x"), b"x")
    (tmp_path / "captures" / "notes.txt").write_text("hands off")

    assert [key.digest for key in store.list("captures")] == [key_of(b"x").digest]


def test_a_share_that_is_not_mounted_is_away_and_not_made(tmp_path):
    store = Store(f"file://{tmp_path}/share")

    with pytest.raises(Away, match="no such folder"):
        store.put(key_of(b"x"), b"x")
    assert not (tmp_path / "share").exists()
    (tmp_path / "share").mkdir()
    assert store.put(key_of(b"x"), b"x")


@pytest.mark.parametrize(
    "url",
    ["s3://", "ftp://host/x", "/mnt/share", "s3://KEY:canary@bucket/x", "az://account", "s3://bucket/x?key=canary"],
)
def test_what_is_no_archive_is_refused_and_not_shown(url):
    with pytest.raises(Refused, match=r"^an archive is s3://BUCKET/PATH") as error:
        Store(url)

    assert "canary" not in str(error.value)


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        (AWAY, Away, "s3:"),
        (UNAVAILABLE, Away, "503"),
        (HANGING, Away, "s3:"),
        (LOST, Away, "s3:"),
        (FULL, Refused, "507"),
        (FORBIDDEN, Refused, "s3:"),
    ],
)
def test_what_goes_wrong_is_told_as_what_it_is_and_passes(through, mode, kind, words):
    store, proxy = through
    data = b"x" * 100_000
    proxy.mode = mode

    with pytest.raises(kind, match=words) as error:
        store.put(key_of(data), data)

    assert type(error.value) is kind
    assert SECRET not in str(error.value)
    assert "Signature" not in str(error.value)
    proxy.mode = "pass"
    store.put(key_of(data), data)
    assert list(store.list("captures")) == [key_of(data)]
    assert store.get(key_of(data)) == data


def test_no_such_bucket_and_a_wrong_key_are_refused(bucket, monkeypatch):
    for name, value in bucket.environment().items():
        monkeypatch.setenv(name, value)
    nowhere = Store("s3://no-such-bucket/x")
    with pytest.raises(Refused):
        nowhere.put(key_of(b"x"), b"x")
    with pytest.raises(Refused):
        list(nowhere.list("captures"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Refused) as error:
        Store(bucket.url).put(key_of(b"x"), b"x")
    assert KEY not in str(error.value)
