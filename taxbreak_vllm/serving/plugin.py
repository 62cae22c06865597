"""The plugin's module of before: the metadata of a checkout installed earlier names it as vLLM's entry point."""

from taxbreak_vllm.plugin import endpoint_plugin, register

__all__ = ["endpoint_plugin", "register"]
