"""Traces too large for memory, measured part by part."""
