"""The command line, one file a group of commands; `main` is what `taxbreak` runs."""

from taxbreak_vllm.cli.main import main

__all__ = ["main"]
