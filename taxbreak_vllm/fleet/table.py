"""Rows as Parquet, `taxbreak.fleet/1`: the fields of `StepRow` are its columns. Needs pyarrow.

The same rows give the same bytes, so that an archive keeps them once.
"""

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, get_args, get_type_hints

import msgspec

from taxbreak_vllm.model.errors import ArchiveError, TaxbreakError
from taxbreak_vllm.model.fleet import FIGURES_SCHEMA, Predicted, StepRow

if TYPE_CHECKING:
    import pyarrow as pa

_SCHEMA = b"schema"


def require_arrow() -> None:
    """Raise TaxbreakError where pyarrow is missing, before any work is done."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise TaxbreakError("a fleet needs the package pyarrow: pip install 'taxbreak-vllm[archive]'") from None


@lru_cache(maxsize=1)
def schema() -> "pa.Schema":
    """Return the columns of the table."""
    import pyarrow as pa

    predicted = pa.list_(pa.struct(_fields(Predicted)))
    fields = [*_fields(StepRow), pa.field("predicted", predicted, nullable=False)]
    return pa.schema(fields, metadata={_SCHEMA: FIGURES_SCHEMA.encode()})


def to_parquet(rows: Iterable[StepRow]) -> bytes:
    """Return a file of rows, in the order of their captures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = [msgspec.to_builtins(row) for row in sorted(rows, key=lambda row: row.capture)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(plain, schema=schema()), buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> "pa.Table":
    """Read some columns of a file, all by default; raises ArchiveError for one of another schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
        if (file.schema_arrow.metadata or {}).get(_SCHEMA) != FIGURES_SCHEMA.encode():
            raise ArchiveError(f"a table of another schema than {FIGURES_SCHEMA}")
        return file.read(columns=columns if columns is None else list(columns))
    except pa.ArrowException as error:
        raise ArchiveError(f"no table: {error}") from error


def _fields(kind: type) -> "list[pa.Field]":
    import pyarrow as pa

    types = {str: pa.large_string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    fields = []
    for name, hint in get_type_hints(kind).items():
        options = [each for each in get_args(hint) if each is not NoneType] if isinstance(hint, UnionType) else [hint]
        if options[0] in types:
            fields.append(pa.field(name, types[options[0]], nullable=isinstance(hint, UnionType)))
    return fields
