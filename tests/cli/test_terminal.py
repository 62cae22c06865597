"""What a person reads fits the terminal it is read on, and a pipe gets it whole."""

import os
import re
import subprocess
import sys

import pytest
from terminal import run_on_terminal

from taxbreak_vllm.cli.printing import print_breakdown
from taxbreak_vllm.insight.diff import diff
from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.insight.fusion import fusion
from taxbreak_vllm.output.text.insight import chain_table, diff_lines, diff_tables, fusion_lines, fusion_table
from taxbreak_vllm.output.text.printed import print_text
from taxbreak_vllm.output.text.wrap import columns
from taxbreak_vllm.taxes.analyze import analyze
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from tests.cli.test_cli import SERVING

TAXBREAK = [sys.executable, "-m", "taxbreak_vllm.cli"]
CUT_FIGURE = re.compile(r"(?<!\S)[+-]?\d[\d.,]*…")
STRAY = re.compile(r"\b(None|nan)\b|· *·|· *$|^ *·| $", re.MULTILINE)


@pytest.fixture(scope="module")
def texts(trace_path):
    """Print what each command over a trace does, as functions: the work is done once."""
    with Recording.open(trace_path, Terms()) as recording:
        findings = Findings(recording, recording.breakdown)
        breakdown, advice, chains = findings.breakdown, findings.advice, fusion(recording)
    moved = diff(breakdown, analyze(SERVING))
    return (
        lambda: print_breakdown(breakdown, advice, 12),
        lambda: print_text(*fusion_lines(chains), fusion_table(chains), chain_table(chains)),
        lambda: print_text(*diff_lines(moved), *diff_tables(moved)),
    )


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_line_of_a_trace_is_wider_than_the_terminal_and_no_figure_is_cut(texts, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))

    for show in texts:
        show()

    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if columns(line) > width] == []
    assert (CUT_FIGURE.findall(said), STRAY.findall(said)) == ([], [])


def test_a_pipe_shortens_nothing(texts, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)

    for show in texts:
        show()

    said = capsys.readouterr().out
    assert "…" not in said.replace("taxbreak analyze …", "")
    assert STRAY.findall(said) == []


COMMANDS = (
    ("analyze", SERVING),
    ("fusion", SERVING),
    ("diff", SERVING, SERVING),
    ("doctor",),
    ("-h",),
    ("analyze", "-h"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_command_on_a_terminal_of_80_columns_fits_it(words):
    done = run_on_terminal([*TAXBREAK, *map(str, words)], columns=80)

    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
    assert len(lines) > 10
    assert [line for line in lines if columns(line) > 80] == []


def test_a_narrow_terminal_has_fewer_columns_and_columns_says_how_narrow():
    def titles(width):
        environment = os.environ | {"COLUMNS": str(width)}
        said = subprocess.run([*TAXBREAK, "analyze", str(SERVING)], capture_output=True, text=True, env=environment)
        (head,) = [line for line in said.stdout.splitlines() if line.startswith("op ")]
        return head.split()

    assert titles(60) == ["op", "kernel", "ΔFT", "device"]
    assert titles(200) == ["op", "kernel", "family", "count", "ΔFT", "ΔCT", "ΔKT", "device", "tier"]


def test_a_pipe_has_a_row_a_line_and_no_colors():
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"FORCE_COLOR": "1"}
    done = subprocess.run([*TAXBREAK, "analyze", str(SERVING)], capture_output=True, text=True, env=environment)

    assert "\x1b" not in done.stdout
    assert re.search(r"^vllm::unified_attention  flash_fwd_splitkv_kernel +attention +3 .* trace$", done.stdout, re.M)


@pytest.mark.parametrize("words", [("analyze", SERVING), ("fusion", SERVING)], ids=lambda words: words[0])
def test_a_reader_that_has_seen_enough_is_no_error(words):
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    done = subprocess.run([*TAXBREAK, *map(str, words)], stdout=write_fd, stderr=subprocess.PIPE, text=True)
    os.close(write_fd)

    assert (done.returncode != 0, done.stderr) == (True, "")
