"""The command line: parse, call, print. Exit 0 when done, 2 for bad usage or input, 1 for a failure.

Results go to stdout, one JSON object with `--json`; progress and errors go to stderr, an error in one line.
"""

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taxbreak_vllm.errors import SettingsError, SpoolError, TaxbreakError, TraceFormatError
from taxbreak_vllm.model import Attribution, Phase

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="taxbreak",
    help="Is the host holding the GPU back, which layer of it, and what to change.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, nothing else")]

_BAD_INPUT = (TraceFormatError, SpoolError, SettingsError)


def main() -> None:
    """Run the command line; every error of ours ends here, in one line."""
    try:
        if paths := _plain_json(sys.argv[1:]):
            gc.disable()  # a twentieth of a short run, and what it could find the end of the process frees
            analyze(paths, json=True)
        else:
            app()
    except TaxbreakError as error:
        _fail(str(error), 2 if isinstance(error, _BAD_INPUT) else 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _plain_json(words: list[str]) -> list[Path] | None:
    """Return the paths of `analyze --json PATH…`, which leaves a parser nothing to do, None for any other words.

    Typer builds a pydantic model to read two words, which takes longer than most traces.
    """
    command, *rest = words or [""]
    paths = [Path(word) for word in rest if word != "--json"]
    is_plain = command == "analyze" and len(paths) == len(rest) - 1 and not any(w[:1] == "-" for w in map(str, paths))
    return paths if is_plain else None


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"taxbreak: {' '.join(message.split())}\n")
    raise SystemExit(code)


@app.command()
def analyze(
    paths: Annotated[list[Path], typer.Argument(help="traces (.json, .json.gz, .json.zst) or captures (folders)")],
    *,
    json: Json = False,
    floor_us: Annotated[
        float | None, typer.Option("--floor-us", min=0, help="measured T_sys of this device in µs, for ΔKT")
    ] = None,
    attribution: Annotated[
        Attribution, typer.Option(help="exclusive: no instant counts twice; paper: the published definitions")
    ] = Attribution.EXCLUSIVE,
    phase: Annotated[Phase | None, typer.Option(help="only the steps of this phase")] = None,
    step: Annotated[str | None, typer.Option(help="only the step of this name or number, from 0 on")] = None,
    top: Annotated[int, typer.Option(min=0, help="rows in the table of dearest kernels")] = 12,
    html: Annotated[Path | None, typer.Option(help="write one self-contained HTML page")] = None,
    speedscope: Annotated[Path | None, typer.Option(help="write a file for https://www.speedscope.app")] = None,
    parquet: Annotated[Path | None, typer.Option(help="folder for steps, rows and dispatches as Parquet")] = None,
) -> None:
    """Decompose traces or captures into ΔFT, ΔCT, ΔKT, device time and HDBI."""
    from taxbreak_vllm.analysis import analyze as analyze_path

    floor_ns = None if floor_us is None else round(floor_us * 1000)
    breakdowns = [
        analyze_path(path, floor_ns=floor_ns, attribution=attribution, phase=phase, step=step) for path in paths
    ]
    if html:
        from taxbreak_vllm.export.html import write_html

        write_html(breakdowns, html)
    if speedscope:
        from taxbreak_vllm.export.speedscope import write_speedscope

        write_speedscope(paths, speedscope)
    if parquet:
        from taxbreak_vllm.export.parquet import write_parquet

        write_parquet(breakdowns, parquet, floor_ns=floor_ns)
    if json:
        if len(breakdowns) == 1:
            _print_json(breakdowns[0].to_json())
        else:
            _print_json(b'{"breakdowns":[' + b",".join(b.to_json() for b in breakdowns) + b"]}")
        return
    from taxbreak_vllm.report import step_table, summary_lines, top_table

    console = _console()
    for breakdown in breakdowns:
        for line in summary_lines(breakdown):
            console.print(line, highlight=False, markup=False)
        console.print(step_table(breakdown))
        if top:
            console.print(top_table(breakdown.steps[0] if len(breakdown.steps) == 1 else breakdown.total, top))


@app.command()
def fusion(
    path: Annotated[Path, typer.Argument(help="a trace (.json, .json.gz, .json.zst) or a capture (folder)")],
    *,
    json: Json = False,
    min_score: Annotated[
        float, typer.Option(min=0.01, max=1, help="proximity score a candidate needs; 1: always together")
    ] = 1.0,
    max_length: Annotated[int, typer.Option(min=2, max=64, help="longest chain, in kernels")] = 8,
    top: Annotated[int, typer.Option(min=0, help="rows in the table of chains")] = 12,
) -> None:
    """Find kernels that always run one after another, and the launches that fusing them would save."""
    from taxbreak_vllm.insight.fusion import fusion as find_fusion

    report = find_fusion(path, lengths=range(2, max_length + 1), min_score=min_score)
    if json:
        _print_json(report.to_json())
        return
    from taxbreak_vllm.report_insight import chain_table, fusion_lines, fusion_table

    console = _console()
    for line in fusion_lines(report):
        console.print(line, highlight=False, markup=False)
    console.print(fusion_table(report))
    if top:
        console.print(chain_table(report, top))


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="a trace or capture: before")],
    b: Annotated[Path, typer.Argument(help="a trace or capture: after")],
    *,
    json: Json = False,
    floor_us: Annotated[
        float | None, typer.Option("--floor-us", min=0, help="measured T_sys of this device in µs, for ΔKT")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="rows in the table of ops and kernels")] = 12,
) -> None:
    """Show what moved from A to B: by phase, by family, by op and kernel."""
    from taxbreak_vllm.analysis import analyze as analyze_path
    from taxbreak_vllm.insight.diff import diff as compare

    floor_ns = None if floor_us is None else round(floor_us * 1000)
    found = compare(analyze_path(a, floor_ns=floor_ns), analyze_path(b, floor_ns=floor_ns))
    if json:
        _print_json(found.to_json())
        return
    from taxbreak_vllm.report_insight import diff_lines, diff_tables

    console = _console()
    for line in diff_lines(found):
        console.print(line, highlight=False, markup=False)
    for table in diff_tables(found, top):
        console.print(table)


@app.command()
def serve(
    *,
    spool: Annotated[Path | None, typer.Option(help="folder the workers write to")] = None,
    host: Annotated[str | None, typer.Option(help="address to bind to")] = None,
    port: Annotated[int | None, typer.Option(help="port to bind to; 0 takes a free one")] = None,
    results: Annotated[Path | None, typer.Option(help="SQLite file of results")] = None,
    retention_s: Annotated[int | None, typer.Option(help="how long analyzed steps are kept (seconds)")] = None,
    window_s: Annotated[int | None, typer.Option(help="window of the hdbi gauge and the page (seconds)")] = None,
) -> None:
    """Run the sidecar: analyze the spool, serve /metrics, the API and the page."""
    from taxbreak_vllm.service.app import serve as run
    from taxbreak_vllm.settings import load_settings

    run(load_settings(spool=spool, host=host, port=port, results=results, retention_s=retention_s, window_s=window_s))


@app.command()
def capture(
    *,
    url: Annotated[str, typer.Option(help="a sidecar, or a vLLM server that mounts /v1/taxbreak")] = (
        "http://127.0.0.1:9797"
    ),
    steps: Annotated[int, typer.Option(min=1, help="how many steps to record")] = 4,
    phase: Annotated[Phase | None, typer.Option(help="only steps of this phase")] = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="give up after this long (seconds)")] = 60.0,
    stacks: Annotated[bool, typer.Option("--stacks", help="record Python stacks too (slower)")] = False,
    server_id: Annotated[str | None, typer.Option(help="which server, where the spool has several")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TAXBREAK_API_KEY", help="bearer token")] = None,
    json: Json = False,
) -> None:
    """Record the next steps of a running server and print their breakdown."""
    from taxbreak_vllm.client import capture_steps

    breakdown = capture_steps(
        url, steps=steps, phase=phase, timeout_s=timeout_s, stacks=stacks, server_id=server_id, api_key=api_key
    )
    if json:
        _print_json(breakdown.to_json())
        return
    from taxbreak_vllm.report import step_table, summary_lines, top_table

    console = _console()
    for line in summary_lines(breakdown):
        console.print(line, highlight=False, markup=False)
    console.print(step_table(breakdown))
    console.print(top_table(breakdown.total))


@app.command()
def demo(*, once: Annotated[bool, typer.Option("--once", help="end after the table")] = False) -> None:
    """Start a tiny model on a real vLLM, send it real load, show the breakdown and the page."""
    from taxbreak_vllm.demo.run import run_demo

    raise typer.Exit(run_demo(once=once))


def _print_json(data: bytes) -> None:
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def _console() -> "Console":
    from rich.console import Console  # a sixth of the start-up, which --json need not pay

    console = Console()  # a table piped into a file should not be cut at 80 columns
    return console if console.is_terminal else Console(width=160)


if __name__ == "__main__":
    main()
