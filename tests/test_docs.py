"""The documents tell the truth: what they name exists, every Python block runs and prints what stands below it."""

import io
import re
import shlex
import shutil
import tomllib
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import typer

from taxbreak_vllm import analyze
from taxbreak_vllm.cli.app import app
from taxbreak_vllm.serving.sampling import policy
from taxbreak_vllm.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
}
ALL = "\n".join(DOCUMENTS.values())
SOURCE = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "taxbreak_vllm").rglob("*.py")))
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)


@cache
def rows(text=ALL):
    """The cells of every row of every table, without the rule below its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def code(text=ALL):
    """What is written as code: spans, and the lines of blocks that are no Python and no output."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks for line in block.splitlines() if not language]
    return [*re.findall(r"`([^`\n]+)`", text), *lines]


@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if "```python" in text])
def test_every_block_prints_what_stands_below_it(name, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "tests" / "data", tmp_path / "tests" / "data")
    monkeypatch.chdir(tmp_path)
    text = DOCUMENTS[name]
    blocks = _BLOCK.findall(text)
    namespace: dict[str, object] = {}

    assert len(blocks) == text.count("```python")
    for block, shown in blocks:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(block, name, "exec"), namespace)
        assert [line.strip() for line in printed.getvalue().splitlines()] == [
            line.strip() for line in shown.splitlines()
        ], block


def test_what_the_blocks_import_of_ours_is_exported_at_the_top():
    imports = re.findall(r"^from (taxbreak_vllm\S*) import", ALL, flags=re.MULTILINE)

    assert set(imports) == {"taxbreak_vllm"}


def test_the_trace_of_the_documents_is_what_its_script_makes():
    namespace: dict[str, object] = {"__name__": "make_serving"}
    script = ROOT / "tests" / "data" / "make_serving.py"

    exec(compile(script.read_text(), str(script), "exec"), namespace)

    assert namespace["make"]() == script.with_name("serving.json").read_text()


def test_every_setting_is_listed_once_with_its_default_and_its_meaning():
    listed = [row for row in rows() if re.fullmatch(rf"`{PREFIX}\w+`", row[0]) and len(row) == 3]

    assert {name.strip("`"): meaning for name, _, meaning in listed} == {
        PREFIX + name.upper(): field.description for name, field in Settings.model_fields.items()
    }
    assert len(listed) == len(Settings.model_fields)
    for name, default, _ in listed:
        value = Settings.model_fields[name.strip("`").removeprefix(PREFIX).lower()].default
        if isinstance(value, bool | int | float | str):
            assert default == f"`{str(value).lower()}`"


def test_every_setting_named_is_one():
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]", ALL)) <= {PREFIX + name.upper() for name in Settings.model_fields}


def test_every_reason_for_a_lost_sample_and_for_no_recording_is_explained():
    lost = set(
        re.findall(r'(?:reason: str = |drops\.add\(|_lose\(recording, |_set_aside\(capture, |abandon\()"(\w+)"', SOURCE)
    )
    off = {policy.DISABLED, policy.OVERHEAD, *re.findall(r'turn_off\("(\w+)"', SOURCE)}
    explained = {row[0].strip("`") for row in rows(DOCUMENTS["docs/troubleshooting.md"])}

    assert {"outbox", "unfinished", "analysis_failed", "hook"} <= lost | off
    assert (lost | off) - explained == set()


def test_every_message_explained_is_one_that_is_said():
    text = DOCUMENTS["docs/troubleshooting.md"]
    messages = [row[0] for row in rows(text[text.index("| message ends in") :])][1:]

    assert messages
    for message in messages:
        assert [part for part in message.strip("`").split("…") if part not in SOURCE] == []


def test_advice_names_metrics_as_prometheus_has_them():
    insight = "".join(path.read_text() for path in (ROOT / "taxbreak_vllm" / "insight").glob("*.py"))
    said = set(re.findall(r"[a-z_]+", " ".join(re.findall(r'refuted_by=f?"([^"]*)"', insight))))
    metrics = set(re.findall(r"`(taxbreak_[a-z_]+)", DOCUMENTS["docs/metrics.md"]))

    assert {name for name in said if name.startswith("taxbreak_")} <= metrics
    assert said & {name.removeprefix("taxbreak_") for name in metrics} == set()
    assert said & metrics


def test_every_make_target_named_exists():
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = {words.split()[1] for words in code() if words.startswith("make ")}

    assert {"demo", "test", "bench-step"} <= named
    assert named - set(targets) == set()


def test_every_command_and_option_named_exists():
    group = typer.main.get_command(app)
    named = [shlex.split(words, comments=True)[1:] for words in code() if re.match(r"taxbreak [a-z]+\b(?!:)", words)]

    assert {"analyze", "serve", "floor"} <= {words[0] for words in named}
    for command, *words in named:
        assert command in group.commands
        known = {option for p in group.commands[command].params for option in (*p.opts, *p.secondary_opts)}
        given = {part for word in words for part in word.split("/") if part.startswith("--")}
        assert given - known - {"--help"} == set(), command


def test_every_file_of_ours_named_exists():
    files = {
        words
        for words in code()
        if re.fullmatch(r"[\w/-]+\.(?:py|toml|sh)|(?:benchmarks|deploy|tests)/[\w./-]+", words)
    }

    assert [
        file for file in files if not any((folder / file).exists() for folder in (ROOT, ROOT / "taxbreak_vllm"))
    ] == []


def test_every_metric_named_is_in_the_table_of_metrics():
    told = re.sub(r"^```diff.*?^```$", "", ALL, flags=re.MULTILINE | re.DOTALL)  # walks that nobody has taken
    names = re.findall(r"\btaxbreak_[a-z_]+", told)
    named = {re.sub("_(bucket|count|sum)$", "", name) for name in names} - {"taxbreak_vllm"}
    listed = {row[0].strip("`") for row in rows(DOCUMENTS["docs/metrics.md"])}

    assert named - listed == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", DOCUMENTS[name])

    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_every_page_is_reached_from_the_readme_in_two_steps():
    def linked(name):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", DOCUMENTS[name])
        found = {(ROOT / name).parent.joinpath(link).resolve() for link in links}
        return {page for page in DOCUMENTS if (ROOT / page).resolve() in found}

    first = linked("README.md")

    assert set(DOCUMENTS) - {"README.md"} == first.union(*(linked(page) for page in first)) - {"README.md"}


def test_the_versions_of_vllm_are_those_that_are_run_and_allowed():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (tried,) = re.findall(r"\[ \$# -gt 0 \] \|\| set -- (.*)", (ROOT / "scripts" / "compat.sh").read_text())
    text = DOCUMENTS["docs/compatibility.md"]

    assert f"| {', '.join(tried.split())} | `make compat`" in text
    assert f"`{extras['vllm'][0]}`" in text
    for version in [requirement.partition("==")[2] for requirement in extras["cpu"]]:
        assert version in text


@pytest.mark.parametrize(
    "name", ["b200_vllm_eager_infer", "b300_sglang_qwen3-30b-a3b_decode_cudagraph"], ids=lambda name: name[:4]
)
def test_a_worked_example_has_the_figures_of_its_trace(real_trace, name):
    path = real_trace(name)
    (told,) = [row for row in rows() if f"on a {name[:4].upper()}," in row[0]]

    (step,) = analyze(path).steps

    device, taxes = step.device, step.taxes
    times_ns = [device.window_ns, taxes.delta_ft_ns, taxes.delta_ct_ns, taxes.delta_kt_ns, device.idle.host_ns]
    times_ns += [device.active_ns, device.idle_ns]
    told = told[1:]
    assert told.pop(1) == f"{step.hdbi:.3f}"
    assert [int(told.pop()), int(told.pop())] == [step.kernels, step.launches]
    assert [float(cell.removesuffix(" ms")) for cell in told] == pytest.approx([t / 1e6 for t in times_ns], rel=1e-2)
    assert f"{(device.active_ns + device.other_active_ns) / device.window_ns:.1%}".replace("%", " %") in ALL
