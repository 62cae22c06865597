"""The bytes of a trace file (.json, .json.gz, .json.zst) as blocks of whole events.

In: a path. Out: calls of `add` with JSON lists of consecutive events, and what stands around them in the file. Blocks
are cut between events, so memory holds one block, never the file.
"""

import codecs
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, TypeVar, cast

import msgspec

from taxbreak_vllm.model.errors import TaxbreakError, TraceFormatError

BLOCK_BYTES = 2**19
_HEADER_LIMIT_BYTES = 64 * 2**20

_T = TypeVar("_T")
_RAW_EVENTS = msgspec.json.Decoder(list[msgspec.Raw])
_METADATA = msgspec.json.Decoder(dict[str, object])

# `{"` cannot occur inside a JSON string (its quote would be escaped), so these match between events only, or between
# objects of a list nested in one; a block cut there does not decode and is cut elsewhere.
_CUT = re.compile(rb'\}\s*(,)\s*(?=\{\s*"[^"\\]{1,64}"\s*:)')
_START = re.compile(rb'"traceEvents"\s*:\s*\[')
# As msgspec says it (a trailing comma is another matter); `_check_parser` holds it to these words.
_HAS_MORE, _BREAKS_OFF = "trailing characters", "truncated"
_ERROR_BYTE = re.compile(r"\(byte (\d+)\)")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[][{},]', re.DOTALL)
# Numbers that JSON does not have, but that Python's json and some versions of Kineto write.
_NOT_A_NUMBER = re.compile(rb'(?<=")(\s*:\s*)-?(?:nan|inf(?:inity)?)(?=\s*[,}])', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a file holds beside its events.

    `is_truncated` where its text breaks off, `has_more` where it goes on after its end.
    """

    metadata: dict[str, object]
    is_truncated: bool
    raw_bytes: int
    has_more: bool = False


def read_blocks(path: Path, add: Callable[[bytes], None], *, block_bytes: int = BLOCK_BYTES) -> Envelope:
    """Give all events to `add`, which raises msgspec.DecodeError, having done nothing, for what is no JSON list.

    Raises TraceFormatError, in one line naming the file, where it is missing, damaged, not JSON or not a trace.
    """
    _check_parser()
    try:
        with open(path, "rb") as file, _decompressed(file, path) as text:
            envelope = _read(text, add, path, block_bytes)
            return replace(envelope, has_more=True) if isinstance(text, _Members) and text.has_more else envelope
    except OSError as error:
        raise TraceFormatError(f"{path}: {error.strerror or error}") from None
    except _damage() as error:
        raise TraceFormatError(f"{path}: damaged or truncated compressed file ({error})") from None
    except RecursionError:
        raise TraceFormatError(f"{path}: JSON nested too deeply for a Kineto trace") from None


@cache
def _check_parser(decode: Callable[[bytes], object] = _RAW_EVENTS.decode) -> None:
    """Make sure that the parser says where a list ends, and that a text breaks off, in the words looked for here."""
    said = []
    for text in (b"[{}] {", b"[{}"):
        try:
            decode(text)
        except msgspec.DecodeError as error:
            said.append(str(error))
    place = _ERROR_BYTE.search(said[0]) if len(said) == 2 else None
    if place is None or int(place[1]) != 6 or _HAS_MORE not in said[0] or _BREAKS_OFF not in said[1]:
        raise TaxbreakError(
            f"msgspec {msgspec.__version__} words its errors in a way that traces cannot be read by: {said};"
            " install one that pyproject.toml allows"
        )


def _decompressed(file: io.BufferedReader, path: Path) -> IO[bytes]:
    magic = file.peek(4)[:4]
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], _Members(gzip.GzipFile(fileobj=file)))
    if magic == b"\x28\xb5\x2f\xfd" or (magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5):  # a frame, or one to skip
        try:
            import zstandard
        except ImportError:
            raise TraceFormatError(
                f"{path}: reading .zst needs the package zstandard (pip install zstandard)"
            ) from None
        return cast(IO[bytes], zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
    return file


class _Members:
    """The members of a gzip file as one stream; `has_more` once something else was found behind the last of them."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self.has_more = False

    def __enter__(self) -> "_Members":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        """Read like a file; what is no member ends it, as it does for gzip(1)."""
        pieces, left = [], size if size >= 0 else sys.maxsize
        while left and not self.has_more:
            try:
                piece = self._file.read1(min(left, BLOCK_BYTES))
            except gzip.BadGzipFile as error:
                if "Not a gzipped file" not in str(error):
                    raise
                self.has_more = True
                break
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)


def _damage() -> tuple[type[Exception], ...]:
    zstandard = sys.modules.get("zstandard")
    return (EOFError, zlib.error, zstandard.ZstdError) if zstandard else (EOFError, zlib.error)


def _read(file: IO[bytes], add: Callable[[bytes], None], path: Path, block_bytes: int) -> Envelope:
    head, buffer, raw_bytes = _read_head(file, path, block_bytes)
    # While no event ends, each read doubles the buffer: an event of any size costs time in proportion to it.
    while block := file.read(max(block_bytes, len(buffer))):
        raw_bytes += len(block)
        buffer += block
        comma = _last_cut(buffer)
        try:
            add(_before(comma, buffer))
        except msgspec.DecodeError as error:
            if _BREAKS_OFF not in str(error):
                break  # the list ended in this block, or it is damaged
            comma = _last_comma(buffer[:comma])  # the cut lay within an event
            add(_before(comma, buffer))
        buffer = buffer[comma + 1 :]

    text = b"[" + buffer
    try:
        end = _end_of_list(text)
    except msgspec.DecodeError as error:
        offset = raw_bytes - len(text)
        raise TraceFormatError(f"{path}: not valid JSON ({error}, counted from byte {offset})") from None
    if end is not None:
        add(text[:end])
        rest = text[end:] + file.read()
        metadata, is_whole = _metadata(head, rest)
        has_more = not is_whole and _goes_on(head + b"]" + rest)
        return Envelope(metadata, not is_whole and not has_more, raw_bytes + len(rest) - len(text) + end, has_more)
    comma = _last_comma(buffer)
    add(_before(comma, buffer))
    with suppress(msgspec.DecodeError):  # what stands after the last comma may be a whole event
        add(b"[" + buffer[comma + 1 :] + b"]")
    return Envelope(_metadata(head, b"")[0], True, raw_bytes)


def _read_head(file: IO[bytes], path: Path, block_bytes: int) -> tuple[bytes, bytes, int]:
    """Read up to the opening bracket of the events; return the text before it, what was read after it, and bytes."""
    buffer = file.read(block_bytes).removeprefix(codecs.BOM_UTF8)
    if not buffer.strip():
        raise TraceFormatError(f"{path}: an empty file")
    if buffer.lstrip()[:1] == b"[":
        return b"", buffer.lstrip()[1:], len(buffer)
    if buffer.lstrip()[:1] != b"{":
        raise TraceFormatError(f"{path}: not JSON, so not a Kineto trace")
    while True:
        match = _START.search(buffer)
        if match:
            return buffer[: match.end()], buffer[match.end() :], len(buffer)
        block = file.read(max(block_bytes, len(buffer)))
        if not block or len(buffer) > _HEADER_LIMIT_BYTES:
            raise TraceFormatError(f"{path}: JSON without a traceEvents list, so not a Kineto trace")
        buffer += block


def _before(comma: int, buffer: bytes) -> bytes:
    return b"[" + buffer[: max(comma, 0)] + b"]"


def _last_cut(buffer: bytes) -> int:
    """Find the last comma that seems to stand between two events, -1 for none; in the tail first: events are short."""
    for tail in (1 << 14, 1 << 18, len(buffer)):
        start = max(0, len(buffer) - tail)
        last = None
        for last in _CUT.finditer(buffer, start):  # noqa: B007 - the last match is what is wanted
            pass
        if last is not None:
            return last.start(1)
        if start == 0:
            break
    return -1


def _last_comma(buffer: bytes) -> int:
    """Find the last comma between two events, -1 for none: exact, and slow, for where `_last_cut` is not enough."""
    depth, last = 0, -1
    for token in _TOKEN.finditer(buffer):
        match token[0]:
            case b"{" | b"[":
                depth += 1
            case b"}" | b"]":
                depth -= 1
            case b"," if depth == 0:
                last = token.start()
    return last


def _end_of_list(text: bytes) -> int | None:
    """Return the position after the list that `text` begins with, None where it breaks off before that list ends.

    Raises msgspec.DecodeError where it is damaged.
    """
    try:
        decode(_RAW_EVENTS, text)
    except msgspec.DecodeError as error:
        # The decoder stops right after the list and says where: no scan of ours could find that place in one pass.
        place = _ERROR_BYTE.search(str(error))
        if place is None or (int(place[1]) == len(text) and _HAS_MORE not in str(error)):
            return None  # a number that breaks off is an error at the last byte
        if _HAS_MORE in str(error):
            return int(place[1]) - 1
        raise
    return len(text)


def _metadata(head: bytes, rest: bytes) -> tuple[dict[str, object], bool]:
    """Read what stands around the events; tell whether it was whole (a bare list has none)."""
    for text, is_whole in ((head + b"]" + rest, True), (head + b"]}", not head)):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            tree = decode(_METADATA, text)
            tree.pop("traceEvents", None)
            return tree, is_whole
    return {}, not head


def _goes_on(text: bytes) -> bool:
    """Tell whether a whole JSON object has something behind it."""
    try:
        decode(_METADATA, text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _HAS_MORE in str(error)
    return False


def decode(decoder: msgspec.json.Decoder[_T], text: bytes) -> _T:
    """Decode JSON, or what is JSON but for NaN and infinities: those become empty strings, of a type no number has."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        if _HAS_MORE in str(error) or _BREAKS_OFF in str(error):
            raise  # all before its end was JSON; looking for NaN takes 20 times as long as decoding
        repaired = _NOT_A_NUMBER.sub(lambda match: match[1] + b'""'.ljust(len(match[0]) - len(match[1])), text)
        if repaired == text:
            raise
        return decoder.decode(repaired)
