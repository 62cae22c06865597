"""Where an object lies in the archive: by kind, model, vLLM, GPU, date and server, and under the hash of its content.

`KIND/model=…/vllm=…/gpu=…/date=YYYY-MM-DD/server=…/DIGEST.SUFFIX`: names and values of Hive's partitions, which DuckDB,
pandas, Spark and Ray Data read. Values are percent-encoded; what is not known has Hive's own name for that.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Self
from urllib.parse import quote, unquote

from taxbreak_vllm.model.errors import ArchiveError

CAPTURES = "captures"
ITERATIONS = "iterations"
BASELINES = "baselines"
TABLES = "tables/v1"  # and the name of one; another schema is another version

_UNKNOWN = "__HIVE_DEFAULT_PARTITION__"
_MAX_VALUE = 192  # encoded: all of them fit S3's 1,024 bytes of a key, and each a file's 255
_CUT = "…"
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*")
_DIGEST = re.compile(r"[0-9a-f]{32}")
_SUFFIX = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")
_PATH = re.compile(
    r"(?P<kind>[^=]+)/model=(?P<model>[^/]+)/vllm=(?P<vllm>[^/]+)/gpu=(?P<gpu>[^/]+)"
    r"/date=(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})/server=(?P<server>[^/]+)/(?P<digest>[0-9a-f]{32})\.(?P<suffix>[^/]+)"
)


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What names an object; "" is what is not known. Raises ArchiveError for what could not be told from its path.

    `date` is the day, in UTC, of what it holds; `digest` the first 32 hexadecimal digits of the SHA-256 of its content.
    """

    kind: str
    model: str
    vllm: str
    gpu: str
    date: date
    server: str
    digest: str
    suffix: str

    def __post_init__(self) -> None:
        values = (self.model, self.vllm, self.gpu, self.server)
        is_sound = _KIND.fullmatch(self.kind) and _DIGEST.fullmatch(self.digest) and _SUFFIX.fullmatch(self.suffix)
        if not is_sound or any(len(_encoded(value)) > _MAX_VALUE for value in values):
            raise ArchiveError(f"{self.kind}/…/{self.digest}.{self.suffix}: no name of an object")

    @classmethod
    def of(
        cls,
        kind: str,
        data: bytes,
        *,
        suffix: str,
        unix_ns: int,
        model: str = "",
        vllm: str = "",
        gpu: str = "",
        server: str = "",
    ) -> Self:
        """Name an object by its content; values too long for a name are cut, with a hash of them at their end."""
        return cls(
            kind=kind,
            model=_short(model),
            vllm=_short(vllm),
            gpu=_short(gpu),
            date=day_of(unix_ns),
            server=_short(server),
            digest=digest_of(data),
            suffix=suffix,
        )

    @classmethod
    def parse(cls, path: str) -> Self:
        """Tell from the path of an object what names it; raises ArchiveError for any other path."""
        found = _PATH.fullmatch(path)
        try:
            parts = {} if found is None else found.groupdict()
            day = date.fromisoformat(parts.pop("date", ""))
            values = {name: _decoded(parts.pop(name)) for name in ("model", "vllm", "gpu", "server")}
            key = cls(date=day, **values, **parts)
        except (ValueError, UnicodeError):
            key = None
        if key is None or key.path != path:
            raise ArchiveError(f"{path}: no name of an object")
        return key

    @property
    def path(self) -> str:
        """Its path in the archive."""
        model, vllm, gpu, server = map(_encoded, (self.model, self.vllm, self.gpu, self.server))
        folder = f"{self.kind}/model={model}/vllm={vllm}/gpu={gpu}/date={self.date.isoformat()}/server={server}"
        return f"{folder}/{self.digest}.{self.suffix}"

    def is_of(self, data: bytes) -> bool:
        """Whether this is the content that it names."""
        return digest_of(data) == self.digest


def digest_of(data: bytes) -> str:
    """Return what names a content."""
    return sha256(data).hexdigest()[:32]


def day_of(unix_ns: int) -> date:
    """Return the day in UTC of a Unix time."""
    return datetime.fromtimestamp(unix_ns // 10**9, UTC).date()


def prefix_of(kind: str, model: str | None = None) -> str:
    """Return the folder of a kind, or of one model of it."""
    return kind if model is None else f"{kind}/model={_encoded(_short(model))}"


def _encoded(value: str) -> str:
    """Return a value as it stands in a path."""
    if not value:
        return _UNKNOWN
    text = quote(value, safe="")
    return text if text != _UNKNOWN else text.replace("_", "%5F", 1)


def _decoded(text: str) -> str:
    return "" if text == _UNKNOWN else unquote(text, errors="strict")


def _short(value: str) -> str:
    value = value.encode(errors="replace").decode()
    if len(_encoded(value)) <= _MAX_VALUE:
        return value
    end = f"{_CUT}{digest_of(value.encode())[:8]}"
    num = len(value)
    while len(_encoded(value[:num] + end)) > _MAX_VALUE:
        num -= 1
    return value[:num] + end
