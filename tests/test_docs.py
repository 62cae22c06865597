"""The documents tell the truth: every Python block runs, and prints what stands below it."""

import io
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", [ROOT / "docs" / "python.md"], ids=lambda path: path.name)
def test_every_block_prints_what_stands_below_it(path, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "tests" / "data", tmp_path / "tests" / "data")
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    blocks = _BLOCK.findall(text)
    namespace: dict[str, object] = {}

    assert len(blocks) == text.count("```python")
    for code, shown in blocks:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, str(path), "exec"), namespace)
        assert [line.strip() for line in printed.getvalue().splitlines()] == [
            line.strip() for line in shown.splitlines()
        ], code


def test_the_trace_of_the_documents_is_what_its_script_makes():
    namespace: dict[str, object] = {"__name__": "make_serving"}
    script = ROOT / "tests" / "data" / "make_serving.py"

    exec(compile(script.read_text(), str(script), "exec"), namespace)

    assert namespace["make"]() == script.with_name("serving.json").read_text()
