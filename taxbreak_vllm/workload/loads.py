"""Requests from elsewhere: a published trace or a benchmark's output in, requests with arrivals and lengths out.

Azure's LLM inference traces (CSV: TIMESTAMP, ContextTokens, GeneratedTokens), Mooncake's (JSON lines: timestamp in ms,
input_length, output_length, hash_ids), BurstGPT's (CSV: Timestamp in s, Request tokens, Response tokens) and the JSON
of `vllm bench serve --save-result --save-detailed`. Any of them may be packed with gzip.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.workload.requests import Request, Requests

MOONCAKE_BLOCK = 512  # tokens that one of its hash ids stands for

Line = tuple[float, int, int, Sequence[int]]  # arrival in s, prompt tokens, tokens answered, hash ids


def read_load(path: Path, *, hash_block_size: int, max_model_len: int) -> Requests:
    """Read a file, ordered by arrival; a request that this model has no room for is left out.

    Raises WorkloadError for a file that is none of these or holds no request.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        fitting = [
            line for line in _reader(text)(text) if line[1] > 0 and line[2] > 0 and line[1] + line[2] <= max_model_len
        ]
    except (KeyError, ValueError, TypeError, IndexError, csv.Error) as error:
        raise WorkloadError(
            f"{path}: none of Azure's, Mooncake's or BurstGPT's traces, nor vllm bench serve --save-detailed: {error!r}"
        ) from error
    if not fitting:
        raise WorkloadError(f"{path}: holds no request that {max_model_len:,} tokens have room for")
    fitting.sort(key=itemgetter(0))
    begin_s = fitting[0][0]
    return Requests.of(_request(number, line, begin_s, hash_block_size) for number, line in enumerate(fitting))


def _request(number: int, line: Line, begin_s: float, hash_block_size: int) -> Request:
    at_s, num_prompt_tokens, num_outputs, hash_ids = line
    per_id = MOONCAKE_BLOCK // hash_block_size
    parts = range(per_id) if per_id else ()
    hashes = [(int(each) + 1) * MOONCAKE_BLOCK + part for each in hash_ids for part in parts]
    return Request(
        number=number,
        at_ns=(at_s - begin_s) * 1e9,
        num_prompt_tokens=num_prompt_tokens,
        num_outputs=num_outputs,
        max_tokens=num_outputs,
        hashes=hashes[: num_prompt_tokens // hash_block_size],
    )


def _reader(text: str) -> Callable[[str], Iterator[Line]]:
    first = text.lstrip().partition("\n")[0]
    if first.startswith("{"):
        return _mooncake if '"hash_ids"' in first or '"timestamp"' in first else _bench_serve
    return _csv


def _csv(text: str) -> Iterator[Line]:
    rows = csv.DictReader(io.StringIO(text))
    if "ContextTokens" in (rows.fieldnames or ()):
        return ((_seconds(r["TIMESTAMP"]), int(r["ContextTokens"]), int(r["GeneratedTokens"]), ()) for r in rows)
    return ((float(r["Timestamp"]), int(r["Request tokens"]), int(r["Response tokens"]), ()) for r in rows)


def _seconds(text: str) -> float:
    whole, _, fraction = text.partition(".")  # of seven digits
    return datetime.fromisoformat(whole).timestamp() + float(f"0.{fraction.rstrip('Z+:0') or 0}")


def _mooncake(text: str) -> Iterator[Line]:
    for line in filter(str.strip, text.splitlines()):
        r: dict[str, Any] = json.loads(line)
        yield r["timestamp"] / 1e3, int(r["input_length"]), int(r["output_length"]), r.get("hash_ids", ())


def _bench_serve(text: str) -> Iterator[Line]:
    found = json.loads(text)
    starts = found["start_times"]
    for at_s, prompt, answer in zip(starts, found["input_lens"], found["output_lens"], strict=True):
        yield float(at_s), int(prompt), int(answer), ()
