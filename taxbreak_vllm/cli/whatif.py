"""The command that asks a recording what another host, launch path or device would make of its steps."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from taxbreak_vllm.cli.options import FloorUs, Json, Rank, floor_ns
from taxbreak_vllm.cli.printing import print_json
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.output.text.printed import print_text

if TYPE_CHECKING:
    from taxbreak_vllm.whatif.changes import Range

_FACTOR = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(?:\.\.(\d+(?:\.\d+)?|\.\d+))?")
_MAX_FACTOR = 1000
_K = TypeVar("_K")


def whatif(
    path: Annotated[Path, typer.Argument(help="a trace (.json, .json.gz, .json.zst) or a capture (folder)")],
    *,
    json: Json = False,
    host: Annotated[
        list[str] | None,
        typer.Option(help="times that host work takes: 1.3, 0.5..0.7, or of one class (python=2)"),
    ] = None,
    kernels: Annotated[
        list[str] | None, typer.Option(help="times that kernels take: 0.8, or of one family (gemm=0.6)")
    ] = None,
    graph: Annotated[str | None, typer.Option(help="full: the launches of a step as one graph")] = None,
    fuse: Annotated[
        list[str] | None, typer.Option(help="kernels that follow one another as one launch: NAME,NAME…")
    ] = None,
    floor_us: FloorUs = None,
    no_sync: Annotated[list[str] | None, typer.Option(help="calls with this in their name do not wait")] = None,
    is_async: Annotated[bool, typer.Option("--async", help="tokens are waited for one step later")] = False,
    compiled: Annotated[bool, typer.Option("--compiled", help="torch.compile: refused, with the reason")] = False,
    baselines: Annotated[
        Path | None, typer.Option(help="floors of the place the recording was made in, for --graph")
    ] = None,
    rank: Rank = None,
) -> None:
    """Replay a recording under a change: what a step would take, within what interval, and what would refute it."""
    from taxbreak_vllm.cli.opening import opened, store
    from taxbreak_vllm.taxes.terms import Terms
    from taxbreak_vllm.trace.kernels import Family
    from taxbreak_vllm.whatif.changes import HOST, Change
    from taxbreak_vllm.whatif.predict import predict, refuse

    classes = {cls.name.lower(): cls for cls in HOST}
    families = {family.value: family for family in Family if family is not Family.COLLECTIVE}
    change = Change(
        host=_factors("--host", host or (), classes),
        kernels=_factors("--kernels", kernels or (), families),
        floor_ns=floor_ns(floor_us),
        full_graph=_is_full(graph),
        fused=tuple(_chain(chain) for chain in fuse or ()),
        no_sync=tuple(no_sync or ()),
        one_step_ahead=is_async,
    )
    asked = (
        *(f"--host {each}" for each in host or ()),
        *(f"--kernels {each}" for each in kernels or ()),
        *([f"--graph {graph}"] if graph else []),
        *(f"--fuse {each}" for each in fuse or ()),
        *([f"--floor-us {floor_us:g}"] if floor_us is not None else []),
        *(f"--no-sync {each}" for each in no_sync or ()),
        *(["--async"] if is_async else []),
        *(["--compiled"] if compiled else []),
    )
    with store(baselines) as known, opened(path, Terms(baselines=known, rank=rank)) as recording:
        named = " ".join(asked)
        reason = _beyond(graph, compiled=compiled)
        answer = refuse(recording, named, reason) if reason else predict(recording, change, named=named)
    if json:
        print_json(answer.to_json())
        return
    from taxbreak_vllm.output.text.whatif import whatif_lines

    print_text(*whatif_lines(answer))


def _beyond(graph: str | None, *, compiled: bool) -> str | None:
    """Return why no recording can answer, if none can."""
    if compiled:
        return (
            "--compiled: which kernels a compiler would make of these is not in a recording; record a compiled step"
            " and compare: taxbreak diff"
        )
    if graph == "piecewise":
        return "--graph piecewise: needs a measured cost for each piece, and which ops would be left out of graphs"
    return None


def _is_full(graph: str | None) -> bool:
    if graph not in (None, "full", "piecewise"):
        raise SettingsError(f"--graph {graph}: is neither full nor piecewise")
    return graph == "full"


def _chain(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if len(parts) < 2 or not all(parts):
        raise SettingsError(f"--fuse {text}: give two or more names of kernels with commas between")
    return parts


def _factors(option: str, texts: Iterable[str], known: Mapping[str, _K]) -> "dict[_K, Range]":
    """Read factors: of everything known, or of one by its name; the later of two for one thing holds."""
    from taxbreak_vllm.whatif.changes import Range

    found: dict[_K, Range] = {}
    for text in texts:
        name, _, factor = text.rpartition("=")
        match = _FACTOR.fullmatch(factor)
        if match is None:
            raise SettingsError(f"{option} {text}: give a factor, as 1.3, 0.5..0.7 or {next(iter(known))}=2")
        low, high = float(match[1]), float(match[2] or match[1])
        if low > high or high > _MAX_FACTOR:
            raise SettingsError(f"{option} {text}: a factor goes from low to high, up to {_MAX_FACTOR}")
        if name and name not in known:
            raise SettingsError(f"{option} {text}: {name!r} is none of {', '.join(known)}")
        found.update(dict.fromkeys([known[name]] if name else known.values(), Range(low=low, high=high)))
    return found
