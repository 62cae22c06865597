"""The README keeps its promises: two commands first, and a table of settings that is the one in the code."""

import re
from pathlib import Path

from taxbreak_vllm.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_first_commands_are_make_demo_and_make_test_and_nothing_else():
    first_block = re.search(r"^```\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)

    assert first_block.group(1).split("\n") == ["make demo", "make test", ""]


def test_every_setting_is_listed_with_its_meaning():
    listed = dict(re.findall(rf"^\| `({PREFIX}\w+)` \| .* \| (.*) \|$", README, flags=re.MULTILINE))

    assert listed == {PREFIX + name.upper(): field.description for name, field in Settings.model_fields.items()}


def test_every_make_target_named_exists():
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)

    assert set(re.findall(r"`?make (\w+)", README)) <= set(targets)
