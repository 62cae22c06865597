"""An S3 server for all tests here, and a path of its own in it for each."""

from dataclasses import replace
from uuid import uuid4

import pytest
from object_store import s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3):
    return replace(s3, path=f"{s3.path}/{uuid4().hex}")
