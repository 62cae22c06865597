"""What names an object: its path tells it back, fits every store, and has Hive's partitions."""

from datetime import date
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.archive.layout import Key, day_of
from taxbreak_vllm.model.errors import ArchiveError

NS_PER_DAY = 86_400 * 10**9
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.just("__HIVE_DEFAULT_PARTITION__")
KEYS = st.builds(
    Key.of,
    st.sampled_from(["captures", "tables/v1/breakdowns", "analyses/0.2.0+cpu/steps"]),
    st.binary(max_size=8),
    suffix=st.sampled_from(["tar", "json.gz", "parquet"]),
    unix_ns=st.integers(0, 200 * 366 * NS_PER_DAY),
    model=VALUES,
    vllm=VALUES,
    gpu=VALUES,
    server=VALUES,
)


@given(KEYS)
def test_a_path_tells_what_it_names_and_fits_every_store(key):
    segments = key.path.split("/")

    assert Key.parse(key.path) == key
    assert len(key.path.encode()) <= 1024
    assert max(len(segment.encode()) for segment in segments) <= 255
    assert not {"", ".", ".."} & set(segments)
    assert key.path.isascii()


@given(VALUES, VALUES)
def test_different_values_have_different_paths_however_long_they_are(first, second):
    def path(model):
        return Key.of("captures", b"", suffix="tar", unix_ns=0, model=model).path

    assert (path(first) == path(second)) == (first == second)


@given(st.text(max_size=80))
def test_no_other_path_is_taken_for_one_of_ours(path):
    with pytest.raises(ArchiveError):
        Key.parse(path)


@pytest.mark.parametrize(
    "wrong",
    [
        "captures/model=a%2fb/vllm=1/gpu=g/date=2026-11-29/server=s/{}.tar",  # not as we write it
        "captures/model=a/vllm=1/gpu=g/date=2026-11-31/server=s/{}.tar",
        "captures/model=a/vllm=1/gpu=g/date=2026-11-29/server=%FF/{}.tar",
        "captures/../secrets/model=a/vllm=1/gpu=g/date=2026-11-29/server=s/{}.tar",
        "captures/model=a/vllm=1/gpu=g/date=2026-11-29/server=s/{}.",
        "captures/model=a/vllm=1/gpu=g/date=2026-11-29/server=s/{}.tar/x",
    ],
)
def test_a_path_that_we_would_not_write_is_refused(wrong):
    with pytest.raises(ArchiveError, match="no name of an object"):
        Key.parse(wrong.format("0" * 32))


def test_the_layout_is_that_of_the_document():
    key = Key.of(
        "captures",
        b"a capture",
        suffix="tar",
        unix_ns=20_786 * NS_PER_DAY + 1,
        model="meta-llama/Llama-3.1-8B",
        vllm="0.32.0",
        gpu="NVIDIA H100 80GB HBM3",
        server="host-7/1",
    )

    assert key.path == (
        "captures/model=meta-llama%2FLlama-3.1-8B/vllm=0.32.0/gpu=NVIDIA%20H100%2080GB%20HBM3/date=2026-11-29"
        "/server=host-7%2F1/6b1d8b0f57ef35f6b3ad1fcf1d9ab3ee.tar"
    ).replace("6b1d8b0f57ef35f6b3ad1fcf1d9ab3ee", key.digest)
    assert unquote(key.path.split("/")[1]) == "model=meta-llama/Llama-3.1-8B"
    assert key.date == date(2026, 11, 29) == day_of(20_787 * NS_PER_DAY - 1)
    assert key.is_of(b"a capture")
    assert not key.is_of(b"another")
