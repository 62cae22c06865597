"""Commands over recorded traces and captures: analyze, fusion, diff."""

from pathlib import Path
from typing import Annotated

import typer

from taxbreak_vllm.cli.options import FloorUs, Json, Rank, floor_ns
from taxbreak_vllm.cli.printing import TOP_ROWS, print_json
from taxbreak_vllm.model.breakdown import Attribution
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.text.printed import print_text


def analyze(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="traces (.json, .json.gz, .json.zst), captures (folders), or an engine's iterations (SERVER/engine-E)"
        ),
    ],
    *,
    json: Json = False,
    floor_us: FloorUs = None,
    attribution: Annotated[
        Attribution, typer.Option(help="exclusive: no instant counts twice; paper: the published definitions")
    ] = Attribution.EXCLUSIVE,
    phase: Annotated[Phase | None, typer.Option(help="only the steps of this phase")] = None,
    step: Annotated[str | None, typer.Option(help="only the step of this name or number, from 0 on")] = None,
    rank: Rank = None,
    baselines: Annotated[
        Path | None, typer.Option(help="floors and replayed baselines of the place the traces were made in")
    ] = None,
    plain_ms: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e7, help="the step's duration without a profiler in ms: calibrates the advice"),
    ] = None,
    limit: Annotated[
        bool, typer.Option("--limit", help="also device time beside the hardware's limit, from recorded shapes")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            help="config.json of the model (Hugging Face): --limit, and of what recorded shapes do not tell, as of CUDA"
            " graphs"
        ),
    ] = None,
    tensor_parallel_size: Annotated[
        int, typer.Option("--tensor-parallel-size", "-tp", min=1, help="ranks that --model is cut over")
    ] = 1,
    expert_parallel_size: Annotated[
        int, typer.Option(min=1, help="ranks that its experts are spread over; 1: they are cut like all else")
    ] = 1,
    top: Annotated[int, typer.Option(min=0, help="rows in the table of dearest kernels")] = TOP_ROWS,
    html: Annotated[Path | None, typer.Option(help="write one self-contained HTML page")] = None,
    speedscope: Annotated[Path | None, typer.Option(help="write a file for https://www.speedscope.app")] = None,
    pprof: Annotated[
        Path | None, typer.Option(help="write ΔFT as a pprof profile, for Pyroscope, Parca and go tool pprof")
    ] = None,
    parquet: Annotated[Path | None, typer.Option(help="folder for steps, rows and dispatches as Parquet")] = None,
) -> None:
    """Decompose traces or captures into ΔFT, ΔCT, ΔKT, device time and HDBI; an engine's iterations into its parts."""
    from taxbreak_vllm.cli.analyses import analyze_paths, exports_to
    from taxbreak_vllm.cli.opening import store
    from taxbreak_vllm.taxes.terms import Terms

    described = None
    if model is not None:
        from taxbreak_vllm.limit.config import shape_of_config

        described = shape_of_config(model, tensor_parallel=tensor_parallel_size, expert_parallel=expert_parallel_size)
    elif (tensor_parallel_size, expert_parallel_size) != (1, 1):
        raise SettingsError("--tensor-parallel-size and --expert-parallel-size are of --model: name one")
    named = {"html": html, "speedscope": speedscope, "pprof": pprof, "parquet": parquet}
    targets = {name: target for name, target in named.items() if target}
    exports = exports_to(targets, sources=paths if baselines is None else [*paths, baselines])
    with store(baselines) as known:
        analyze_paths(
            paths,
            Terms(floor_ns=floor_ns(floor_us), attribution=attribution, baselines=known, rank=rank),
            exports,
            json=json,
            top=top,
            phase=phase,
            step=step,
            with_limit=limit or described is not None,
            model=described,
            plain_ns=None if plain_ms is None else round(plain_ms * 1e6),
        )


def fusion(
    path: Annotated[Path, typer.Argument(help="a trace (.json, .json.gz, .json.zst) or a capture (folder)")],
    *,
    json: Json = False,
    min_score: Annotated[
        float, typer.Option(min=0.01, max=1, help="proximity score a candidate needs; 1: always together")
    ] = 1.0,
    max_length: Annotated[int, typer.Option(min=2, max=64, help="longest chain, in kernels")] = 8,
    rank: Rank = None,
    top: Annotated[int, typer.Option(min=0, help="rows in the table of chains")] = TOP_ROWS,
) -> None:
    """Find kernels that always run one after another, and the launches that fusing them would save."""
    from taxbreak_vllm.cli.opening import opened
    from taxbreak_vllm.insight.fusion import fusion as find_fusion
    from taxbreak_vllm.taxes.terms import Terms

    with opened(path, Terms(rank=rank)) as recording:
        report = find_fusion(recording, lengths=range(2, max_length + 1), min_score=min_score)
    if json:
        print_json(report.to_json())
        return
    from taxbreak_vllm.output.text.insight import chain_table, fusion_lines, fusion_table

    tables = [fusion_table(report)] if report.kernels else []
    print_text(*fusion_lines(report), *tables, *([chain_table(report, top)] if top and report.chains else []))


def diff(
    a: Annotated[Path, typer.Argument(help="a trace or capture: before")],
    b: Annotated[Path, typer.Argument(help="a trace or capture: after")],
    *,
    json: Json = False,
    floor_us: FloorUs = None,
    rank: Rank = None,
    top: Annotated[int, typer.Option(min=0, help="rows in the table of ops and kernels")] = TOP_ROWS,
) -> None:
    """Show what moved from A to B: by phase, by family, by op and kernel."""
    from taxbreak_vllm.cli.opening import opened
    from taxbreak_vllm.insight.diff import diff as compare
    from taxbreak_vllm.taxes.terms import Terms

    breakdowns = []
    for path in (a, b):
        with opened(path, Terms(floor_ns=floor_ns(floor_us), rank=rank)) as recording:
            breakdowns.append(recording.breakdown)
    found = compare(*breakdowns)
    if json:
        print_json(found.to_json())
        return
    from taxbreak_vllm.output.text.insight import diff_lines, diff_tables

    print_text(*diff_lines(found), *diff_tables(found, top))
