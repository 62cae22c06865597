"""The plugin's module of before: the metadata of a checkout installed earlier names it as vLLM's entry point."""

from importlib import import_module


def __getattr__(name: str) -> object:
    return getattr(import_module("taxbreak_vllm.plugin"), name)
