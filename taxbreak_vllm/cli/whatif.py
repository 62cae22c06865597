"""The command that asks a recording what another host, launch path or device would make of its steps."""

from pathlib import Path
from typing import Annotated

import typer

from taxbreak_vllm.cli.options import FloorUs, Json, Rank
from taxbreak_vllm.cli.printing import print_json
from taxbreak_vllm.output.text.printed import print_text


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
    compiled: Annotated[bool, typer.Option("--compiled", help="torch.compile, on the CPU backend")] = False,
    like: Annotated[
        Path | None, typer.Option(help="ops take as long as replayed in this store (of taxbreak replay)")
    ] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="floors of the place the recording was made in, for --graph")
    ] = None,
    rank: Rank = None,
) -> None:
    """Replay a recording under a change: what a step would take, within what interval, and what would refute it."""
    from taxbreak_vllm.cli.opening import opened, store
    from taxbreak_vllm.taxes.terms import Terms
    from taxbreak_vllm.whatif.asked import asked

    with store(baselines) as known, store(like) as elsewhere:
        change = asked(
            host=host or (),
            kernels=kernels or (),
            graph=graph,
            fuse=fuse or (),
            floor_us=floor_us,
            no_sync=no_sync or (),
            is_async=is_async,
            compiled=compiled,
            like=elsewhere,
        )
        with opened(path, Terms(baselines=known, rank=rank), with_calls=elsewhere is not None) as recording:
            answer = change.of(recording)
    if json:
        print_json(answer.to_json())
        return
    from taxbreak_vllm.output.text.whatif import whatif_text

    print_text(*whatif_text(answer))
