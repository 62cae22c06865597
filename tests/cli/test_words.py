"""What `taxbreak` is told before any command: its help, its version, what a shell completes."""

import os
import re
import subprocess
import sys

import pytest
import typer

from taxbreak_vllm.cli.app import app
from taxbreak_vllm.model.version import package_version

COMMANDS = sorted(typer.main.get_command(app).commands)


def test_without_a_command_there_is_help_and_no_error(taxbreak):
    done = taxbreak()

    assert (done.returncode, done.stderr) == (0, "")
    assert all(re.search(rf"^│ {command} ", done.stdout, re.M) for command in COMMANDS)


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)], ids=lambda words: " ".join(words))
def test_each_command_has_help_by_both_names(taxbreak, command):
    short, long = taxbreak(*command, "-h"), taxbreak(*command, "--help")

    assert (short.returncode, short.stdout) == (0, long.stdout)
    assert "Usage: taxbreak" in short.stdout


def test_the_version_is_a_line(taxbreak):
    done = taxbreak("--version")

    assert (done.returncode, done.stdout) == (0, f"taxbreak {package_version()}\n")


def test_a_shell_completes_commands_and_options():
    def complete(*words):
        environment = os.environ | {
            "_TAXBREAK_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(("taxbreak", *words)),
            "COMP_CWORD": str(len(words)),
        }
        command = [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'taxbreak'; import taxbreak_vllm.cli as c; c.main()",
        ]
        return subprocess.run(command, capture_output=True, text=True, env=environment).stdout.split()

    assert complete("an") == ["analyze"]
    assert "--parquet" in complete("analyze", "--p")


def test_the_completion_of_a_shell_is_shown(taxbreak, monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/bash")
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")

    done = taxbreak("--show-completion", "bash")

    assert done.returncode == 0, done.stderr
    assert "_TAXBREAK_COMPLETE=complete_bash" in done.stdout


def test_completion_is_installed_where_the_shell_looks_for_it(taxbreak, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")

    done = taxbreak("--install-completion", "bash")

    assert done.returncode == 0, done.stderr
    assert "taxbreak" in (tmp_path / ".bashrc").read_text()
