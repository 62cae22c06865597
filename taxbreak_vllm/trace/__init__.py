"""File to columns to dispatches to timelines. numpy and msgspec only: no torch, no vllm, no pandas."""
