"""Cut an answer to a size that a model can read: a JSON tree in, a shorter one and what was left out of it out."""

from collections.abc import Iterator
from typing import Any

from taxbreak_vllm.output.kernel_names import kernel_name

MAX_TEXT = 400  # characters of one text
_MAX_LEFT_OUT = 20
_WHOLE = {"figures", "interval"}  # of a known length
_UNREADABLE = {"bucket_counts"}  # says nothing without its bounds

Tree = dict[str, Any]


def bounded(tree: Tree, most: int) -> Tree:
    """Return a tree whose lists have `most` members, texts a bounded length and kernels their short names.

    What was left out stands in its member `left_out`, if anything was.
    """
    left_out: dict[str, None] = {}
    short = {name: value for name, value in _members(tree, "", most, left_out)}
    notes = list(left_out)
    if len(notes) > _MAX_LEFT_OUT:
        notes = [*notes[:_MAX_LEFT_OUT], f"{len(notes) - _MAX_LEFT_OUT} more"]
    return short | {"left_out": notes}


def _members(tree: Tree, path: str, most: int, left_out: dict[str, None]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if name in _UNREADABLE:
            left_out[f"{name}: not told"] = None
        elif name == "kernel" and isinstance(value, str):
            yield name, kernel_name(value)[:MAX_TEXT]
        else:
            yield name, _shorter(value, f"{path}.{name}".lstrip("."), most, left_out)


def _shorter(value: object, path: str, most: int, left_out: dict[str, None]) -> object:
    if isinstance(value, dict):
        return dict(_members(value, path, most, left_out))
    if isinstance(value, list | tuple):
        if len(value) > most and path.rpartition(".")[2] not in _WHOLE:
            left_out[f"{path}: {most} of {len(value)}"] = None
            value = value[:most]
        return [_shorter(each, path, most, left_out) for each in value]
    if isinstance(value, str) and len(value) > MAX_TEXT:
        left_out[f"{path}: {MAX_TEXT} of {len(value)} characters"] = None
        return value[:MAX_TEXT] + "…"
    return value
