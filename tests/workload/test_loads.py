"""Published traces and a benchmark's output become requests; a file of something else is refused in a line."""

import gzip
import json

import pytest

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.workload.loads import read_load

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,48,10\n2023-11-16 18:17:04.0319600,31,8\n"
AZURE_2024 = AZURE.replace("2023-11-16 18:17:03.9799600", "2024-05-10 00:00:00.979960+00:00").replace(
    "2023-11-16 18:17:04.0319600", "2024-05-10 00:00:01.031960+00:00"
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,48,10,58,API log\n5.052,GPT-4,31,8,39,API log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 48, "output_length": 10, "hash_ids": [3, 4]}\n'
    '{"timestamp": 52, "input_length": 31, "output_length": 8, "hash_ids": [3]}\n'
)
NAMES = ["azure", "azure_2024", "burst", "mooncake", "bench"]
BENCH = json.dumps({"input_lens": [48, 31], "output_lens": [10, 8], "start_times": [7.0, 7.052], "ttfts": []})


def read(path, **options):
    return read_load(path, **{"hash_block_size": 16, "max_model_len": 512} | options)


@pytest.mark.parametrize("text", [AZURE, AZURE_2024, BURST, MOONCAKE, BENCH], ids=NAMES)
@pytest.mark.parametrize("is_packed", [False, True])
def test_arrivals_and_lengths_are_those_of_the_file(tmp_path, text, is_packed):
    path = tmp_path / "load"
    path.write_bytes(gzip.compress(text.encode()) if is_packed else text.encode())

    first, second = read(path)

    assert (first.num_prompt_tokens, first.num_outputs, first.at_ns) == (48, 10, 0)
    assert (second.num_prompt_tokens, second.num_outputs) == (31, 8)
    assert second.at_ns == pytest.approx(52e6, abs=1000)


def test_prompts_that_began_alike_share_their_blocks(tmp_path):
    path = tmp_path / "load"
    long = [
        {"timestamp": t, "input_length": 1100, "output_length": 2, "hash_ids": [7, at]} for t, at in ((0, 8), (1, 9))
    ]
    path.write_text("\n".join(map(json.dumps, long)))

    first, second = read(path, max_model_len=4096)

    same = [a == b for a, b in zip(first.hashes, second.hashes, strict=True)]
    assert same == [True] * 32 + [False] * 32
    assert len(set(first.hashes)) == 64


def test_what_the_model_has_no_room_for_is_left_out(tmp_path):
    path = tmp_path / "load"
    path.write_text(AZURE)

    assert [request.num_prompt_tokens for request in read(path, max_model_len=50)] == [31]
    with pytest.raises(WorkloadError, match="holds no request"):
        read(path, max_model_len=20)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", '{"timestamp": "x"}', "{", '{"a": 1}', "TIMESTAMP,ContextTokens\nx,y\n"]
)
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "load"
    path.write_text(text)

    with pytest.raises(WorkloadError, match=str(path)):
        read(path)
    with pytest.raises(WorkloadError, match="No such file"):
        read(tmp_path / "nowhere")
