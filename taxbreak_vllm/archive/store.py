"""An object store or a shared folder: objects put once, listed and read back, whatever kind of store it is.

In: the URL of a bucket, a container or a folder. Credentials come from the environment's own chain, as each cloud's
tools read it, and are never ours: a URL that holds one is refused, and no message shows a query.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from taxbreak_vllm.archive.layout import Key, prefix_of
from taxbreak_vllm.model import defaults
from taxbreak_vllm.model.errors import ArchiveError as ArchiveError
from taxbreak_vllm.model.errors import Away as Away
from taxbreak_vllm.model.errors import Refused as Refused
from taxbreak_vllm.model.version import package_version

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

CONNECT_S = 5
REQUEST_S = 60  # of a request with all it carries: a part of an upload is 5 MiB
RETRY_S = 20  # by the library, of what may pass at once; whoever puts tries again later
_NUM_RETRIES = 2
_PART_BYTES = 5 * 2**20
_PAGE = 1000

_STATUS = re.compile(r"status(?: code)?:? (\d{3})")
_OS_ERROR = re.compile(r"os error (\d+)")
_REQUEST, _HOST = re.compile(r"(https?://[^/\s]+)\S*"), r"\1"
_PLACE = re.compile(r"\b(path|location) \S+")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REFUSING_OS_ERRORS = {1, 13, 27, 28, 30, 122}  # EPERM, EACCES, EFBIG, ENOSPC, EROFS, EDQUOT
_MAX_WORDS = 300


def check(url: str) -> None:
    """Raise Refused for what is no URL of an archive, and where the packages for one are not installed."""
    if not re.fullmatch(defaults.ARCHIVE_URL, url):
        raise Refused(defaults.ARCHIVE_URL_WORDS)
    missing = next((name for name in ("obstore", "pyarrow") if find_spec(name) is None), None)
    if missing is not None:
        raise Refused(f"an archive needs the package {missing}: pip install 'taxbreak-vllm[archive]'")


class Store:
    """An archive; may be used by several threads. Nothing is asked of the store before the first call.

    Each call may raise `Away` (not reached, too slow, an error of the store's own: try again later) or `Refused`
    (credentials, no such bucket, full).
    """

    def __init__(self, url: str, *, timeout_s: float = REQUEST_S, retry_s: float = RETRY_S) -> None:
        check(url)
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self.url = url
        self._options = _remote_options(timeout_s, retry_s)
        self._obstore = obstore
        self._from_url = from_url
        self._base_error = BaseError
        self._folder = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
        self._opened: ObjectStore | None = None

    def put(self, key: Key, data: bytes) -> bool:
        """Store an object unless it is there; return whether it was not. A part of one that was cut off is replaced."""
        with self._errors():
            if self._size(key.path) == len(data):
                return False
            self._obstore.put(self._store(), key.path, data, chunk_size=_PART_BYTES, max_concurrency=1)
            return True

    def get(self, key: Key) -> bytes:
        """Return the content of an object; raises ArchiveError where there is none, or another than its name says."""
        with self._errors(ArchiveError(f"{key.path}: not there")):
            data = bytes(self._obstore.get(self._store(), key.path).bytes())
        if not key.is_of(data):
            raise ArchiveError(f"{key.path}: damaged: its content is not what its name says")
        return data

    def list(self, kind: str, since: date | None = None, model: str | None = None) -> Iterator[Key]:
        """Yield what there is of a kind, in no order; of days before `since`, and other models, nothing is asked."""
        prefix = prefix_of(kind, model)
        for folder in [prefix] if since is None else self._days(prefix, since):
            for path in self._paths(folder):
                try:
                    key = Key.parse(path)
                except ArchiveError:
                    continue  # somebody else's
                if key.kind == kind:
                    yield key

    def _days(self, prefix: str, since: date) -> Iterator[str]:
        with self._errors():
            folders = self._obstore.list_with_delimiter(self._store(), f"{prefix}/")["common_prefixes"]
        for folder in folders:
            name, _, value = folder.rstrip("/").rpartition("/")[2].partition("=")
            if name == "date":
                if value >= since.isoformat():
                    yield folder.rstrip("/")
            elif name in ("model", "vllm", "gpu"):
                yield from self._days(folder.rstrip("/"), since)

    def _paths(self, folder: str) -> Iterator[str]:
        pages = iter(self._obstore.list(self._store(), f"{folder}/", chunk_size=_PAGE))
        while True:
            with self._errors():
                page = next(pages, None)
            if page is None:
                return
            yield from (str(found["path"]) for found in page)

    def _store(self) -> "ObjectStore":
        """Return the library's store; raises Away for a folder that is not there, as where a share is not mounted."""
        if self._folder is not None and not self._folder.is_dir():
            raise Away(f"{self.url}: no such folder here")
        if self._opened is None:
            self._opened = self._from_url(self.url, **({} if self._folder else self._options))
        return self._opened

    def _size(self, path: str) -> int | None:
        """Return the bytes of an object, None where there is none."""
        try:
            return int(self._obstore.head(self._store(), path)["size"])
        except FileNotFoundError:
            return None

    @contextmanager
    def _errors(self, missing: ArchiveError | None = None) -> Iterator[None]:
        try:
            yield
        except ArchiveError:
            raise
        except FileNotFoundError:
            raise missing or Refused(f"{self.url}: no such bucket or container") from None
        except (self._base_error, OSError, ValueError) as error:
            raise _translated(self.url, error) from None  # its own words, and those of its causes, may hold a query


def _remote_options(timeout_s: float, retry_s: float) -> dict[str, Any]:
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "timeout": timedelta(seconds=timeout_s),
        "allow_http": _is_plain_http(),
        "user_agent": f"taxbreak-vllm/{package_version()}",
    }
    return {
        "client_options": client,
        "retry_config": {"max_retries": _NUM_RETRIES, "retry_timeout": timedelta(seconds=retry_s)},
    }


def _is_plain_http() -> bool:
    """Whether the environment names an endpoint without TLS: so somebody wants."""
    clouds = ("AWS_", "AZURE_", "GOOGLE_")
    named = (value for name, value in os.environ.items() if name.startswith(clouds) and "ENDPOINT" in name)
    return any(value.startswith("http:") for value in named)


def _translated(url: str, error: Exception) -> ArchiveError:
    """Tell what a store's error means for whoever wants to use it, without the request and what its answer quotes."""
    text = " ".join(str(error).partition("\n\nDebug")[0].split())
    code = found.group(1) if (found := _CODE.search(text)) else ""
    told = _PLACE.sub(r"\1 …", _REQUEST.sub(_HOST, text)).partition("<")[0]
    words = f"{url}: {told[:_MAX_WORDS].strip()} {code}".strip()
    status = int(found.group(1)) if (found := _STATUS.search(text)) else 0
    os_error = int(found.group(1)) if (found := _OS_ERROR.search(text)) else 0
    refuses = (
        type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError", "NotSupportedError", "ValueError")
        or status == 507
        or (300 <= status < 500 and status not in (408, 409, 425, 429))
        or os_error in _REFUSING_OS_ERRORS
    )
    return Refused(words) if refuses else Away(words)
