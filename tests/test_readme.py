"""The README's first screen keeps its promises: two commands, then what they print and a picture."""

import re
from dataclasses import replace
from pathlib import Path

from taxbreak_vllm.demo.run import MODELS, PHASES, show_result
from taxbreak_vllm.model.breakdown import DeviceTime, IdleTime, StepBreakdown, Taxes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIRST_SCREEN = README[: README.index("\n## ")]


def test_the_first_commands_are_make_demo_and_make_test_and_nothing_else():
    first_block = re.search(r"^```\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)

    assert first_block.group(1).split("\n") == ["make demo", "make test", ""]


def structure(text):
    """Return the lines of an output without what differs from run to run: figures, whether there, widths of columns."""
    shapes = (re.sub(r"–|\d[\d,.]*( (ms|µs)\b)?", "0", line).replace("─", "") for line in text.splitlines())
    return [" ".join(shape.split()) for shape in shapes]


def test_the_result_under_the_first_commands_is_what_the_demo_prints(capsys, monkeypatch):
    shown = re.search(r"^```text\n(.*?)^```", FIRST_SCREEN, flags=re.DOTALL | re.MULTILINE)[1]
    monkeypatch.delenv("COLUMNS", raising=False)
    ms = 10_100_000
    step = StepBreakdown(
        window_ns=9 * ms,
        device=DeviceTime(window_ns=9 * ms, active_ns=ms, idle_ns=8 * ms, idle=IdleTime(host_ns=7 * ms)),
        taxes=Taxes(delta_ft_ns=7 * ms, delta_kt_ns=0, orchestration_ns=7 * ms),
        hdbi=1 / 8,
        kernels=99,
    )
    steps = {f"{model} {phase}, 9 steps": replace(step, phase=phase) for model in MODELS for phase in PHASES}

    show_result(steps, "http://127.0.0.1:9797/")

    printed = structure(capsys.readouterr().out)
    least = re.search(r"Most host-bound here is ([\w-]+ \w+), ", shown)[1]
    printed = [re.sub(r"(?<=Most host-bound here is )[\w-]+ \w+", least, line) for line in printed]
    assert structure(shown) == [line for line in printed if line in structure(shown)]
    assert structure(shown)[: 2 + len(steps)] == printed[: 2 + len(steps)]


def test_a_picture_stands_under_the_first_commands():
    assert re.search(r"^!\[.+\]\(docs/images/\w+\.png\)$", FIRST_SCREEN, flags=re.MULTILINE)


def test_it_is_read_in_a_few_minutes():
    words = [word for word in README.split() if any(letter.isalnum() for letter in word)]

    assert len(words) < 1000


def test_every_way_in_is_named():
    for way in ("--worker-extension-cls taxbreak_vllm.WorkerExtension", "VLLM_PLUGINS=taxbreak", "taxbreak analyze"):
        assert way in README
