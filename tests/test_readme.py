"""The README's first screen keeps its promises: two commands, then what they print and a picture."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIRST_SCREEN = README[: README.index("\n## ")]


def test_the_first_commands_are_make_demo_and_make_test_and_nothing_else():
    first_block = re.search(r"^```\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)

    assert first_block.group(1).split("\n") == ["make demo", "make test", ""]


def test_a_result_and_a_picture_stand_under_the_first_commands():
    assert "```text\n┏" in FIRST_SCREEN
    assert re.search(r"^!\[.+\]\(docs/images/\w+\.png\)$", FIRST_SCREEN, flags=re.MULTILINE)


def test_it_is_read_in_a_few_minutes():
    words = [word for word in README.split() if any(letter.isalnum() for letter in word)]

    assert len(words) < 1000


def test_every_way_in_is_named():
    for way in ("--worker-extension-cls taxbreak_vllm.WorkerExtension", "VLLM_PLUGINS=taxbreak", "taxbreak analyze"):
        assert way in README
