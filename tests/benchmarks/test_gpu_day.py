"""The table of the GPU day, on figures that were put there, and the day itself as a rehearsal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the benchmark needs torch")

import gpu_day

ROOT = Path(__file__).resolve().parents[2]


def test_a_part_that_told_nothing_is_named(tmp_path, capsys):
    assert gpu_day.main([str(tmp_path)]) == 1
    assert "nothing is told of part 1, 2, 3, 4, 5, 6, 7" in capsys.readouterr().out


def test_each_question_has_its_answer():
    check = {
        "floors": {
            "spread": {"null": {"median": 4500.0}},
            "run 0": {"graph_line_ns": {"per_launch": 5100.0, "per_node": 12.3}},
        },
        "taxes": {"python": {"rows": [{"recovered": True}, {"recovered": False}]}, "launch": {"error": "no"}},
        "sessions": {
            "three steps each": {
                "recordings": 60, "whole": 58, "records lost of first steps": 7, "records lost of the others": 0,
                "host MiB, after one": 900.4, "host MiB, after all": 912.0,
            },
            "profiler": {"rows": [{"launches": 500, "start_ns": 2e6, "stop_ns": 3.25e7}]},
        },
        "findings": {
            "gpt2 decode 1": {"orchestration_ns": 2e6}, "gpt2 decode 8": {"orchestration_ns": 2.2e6},
            "kernel ratios": {"olmoe / llama-1b": 8.31}, "tklqt knee": {"batch": {"prefill": 8, "decode": None}},
        },
    }  # fmt: skip
    serving = {
        "live": {
            "llama": {
                "recording is on": False, "off_reason": "hook", "recordings": 9, "whole": 8, "tokens asked": 100,
                "tokens counted": 100, "stall_ns": 5e6, "token before the first recording_ns": 100.0,
                "token after the last_ns": 115.0, "phases": {"decode full": {"hdbi": 0.25, "captures": 9}},
            }
        },
        "floors": {"cuda": {"ceilings": {"bf16": 7.9e14, "1048576 bytes": 9e12, "536870912 bytes": 4e12}}},
        "truth": {
            "engine loop": {"rose_ns": 1_010_000.0, "injected_ns": 1_000_000},
            "long recording": {"rows": [{"within 3 %": True}, {"within 3 %": False}]},
        },
        "modes": {"llama savings": [{"within": True}, {"within": None}, {"within": False}]},
        "cost": {
            "summary": [
                {"plugin": "on", "load": "decode", "tokens_per_s / off": 0.995, "tokens_per_s range": "0.98-1.01"}
            ]
        },
    }  # fmt: skip

    told = {question: answer for _, question, answer in gpu_day.rows(check, serving)}

    assert told == {
        "recording is still on; why not": "False; hook",
        "recordings, whole": "9, 8",
        "tokens asked for, counted": "100, 100",
        "HDBI, decode full": "0.250 of 9",
        "stall of a recorded step, median": "5.00 ms",
        "a token after recordings over before": "1.150",
        "floors, median µs": "null 4.50",
        "a graph's launch, and each node of it": "5100, 12 ns",
        "FLOP a second, and bytes": "bf16 7.9e+14, 536870912 bytes 4e+12",
        "the profiler's start and stop, by launches": "500: 2.00 ms, 32.50 ms",
        "delays recovered within 10 % or 1 µs": "1 of 2",
        "a delay of the engine's loop": "1010000 of 1000000 ns",
        "figures of three-step recordings within 3 % of a long one's": "1 of 2",
        "steps with graphs within what was predicted from eager ones": "1 of 2",
        "recordings whole": "58 of 60",
        "records lost of first steps, of others": "7, 0",
        "host memory after one, after all": "900, 912 MiB",
        "orchestration of GPT-2's decode over the batch, most over least": "1.10",
        "kernels a token, mixture of experts over dense": "8.3",
        "TKLQT leaves its plateau at batch": "{'prefill': 8, 'decode': None}",
        "tokens/s over those without, on, decode": "0.995 (0.98-1.01)",
    }


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_a_rehearsal_of_the_day_answers_every_part_and_goes_on_where_it_was(tmp_path):
    pytest.importorskip("vllm", reason="the day serves")
    command = [str(ROOT / "benchmarks" / "gpu_day.sh"), str(tmp_path), "--device", "cpu", "--tiny"]
    env = os.environ | {"PYTHON": sys.executable, "SECONDS_IN_ALL": "900"}

    first = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, env=env)
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env)

    assert "nothing is told of part 4" in first.stdout  # graphs need a GPU
    errors = [
        (name, case, found["error"])
        for name in ("check", "serving")
        for cases in json.loads((tmp_path / f"gpu_{name}.json").read_text()).values()
        for case, found in cases.items()
        if isinstance(found, dict) and "error" in found
    ]
    assert errors == []
    assert first.stdout.partition("\nthe day\n")[2] == again.stdout.partition("\nthe day\n")[2]
    assert 1 <= len(list(tmp_path.glob("*.json.gz"))) <= 4
    assert len(list(tmp_path.iterdir())) <= 8
