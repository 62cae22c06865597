"""The command line: parse, call, print. Exit 0 when done, 2 for bad usage or input, 1 for a failure.

Results go to stdout, one JSON object with `--json`; progress and errors go to stderr, an error in one line.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from taxbreak_vllm.model.breakdown import Attribution
from taxbreak_vllm.model.errors import BaselineError, SettingsError, SpoolError, TaxbreakError, TraceFormatError
from taxbreak_vllm.model.step import Phase

if TYPE_CHECKING:
    from rich.console import Console

    from taxbreak_vllm.baselines.store import Baselines
    from taxbreak_vllm.model.advice import AdviceReport
    from taxbreak_vllm.model.breakdown import Breakdown

app = typer.Typer(
    name="taxbreak",
    help="Is the host holding the GPU back, which layer of it, and what to change.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, nothing else")]

Store = Annotated[
    Path, typer.Option("--baselines", help="SQLite file of floors and replayed baselines, made on first use")
]
Device = Annotated[
    str, typer.Option(help="where to measure: cpu, cuda, cuda:1, …; by default the GPU where torch sees one")
]

TOP_ROWS = 12

_BAD_INPUT = (TraceFormatError, SpoolError, SettingsError, BaselineError)


def main() -> None:
    """Run the command line; every error of ours ends here, in one line."""
    words = sys.argv[1:]
    try:
        _check_text(words)
        if paths := _plain_json(words):
            gc.disable()  # a twentieth of a short run, and what it could find the end of the process frees
            analyze(paths, json=True)
        else:
            app()
    except TaxbreakError as error:
        _fail(str(error), 2 if isinstance(error, _BAD_INPUT) else 1)
    except OSError as error:
        _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _check_text(words: list[str]) -> None:
    """Refuse a name that is not UTF-8 before any work is done: no JSON, HTML or table could say it."""
    for word in words:
        shown = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
        if shown != word:
            raise SettingsError(f"{shown}: not UTF-8; give the file another name")


def _check_targets(targets: list[Path | None], sources: list[Path | None]) -> None:
    """Refuse to write over what is read, or two files to one place, before any work is done."""
    taken = [source.resolve() for source in sources if source]
    for target in (target for target in targets if target):
        if target.resolve() in taken:
            raise SettingsError(f"{target}: is read or written already; give another name to write to")
        taken.append(target.resolve())


def _plain_json(words: list[str]) -> list[Path] | None:
    """Return the paths of `analyze --json PATH…`, which leaves a parser nothing to do, None for any other words.

    Typer builds a pydantic model to read two words, which takes longer than most traces.
    """
    command, *rest = words or [""]
    paths = [Path(word) for word in rest if word != "--json"]
    is_plain = command == "analyze" and len(paths) == len(rest) - 1 and not any(w[:1] == "-" for w in map(str, paths))
    return paths if is_plain else None


def _say(message: str) -> None:
    sys.stderr.write(f"taxbreak: {' '.join(message.split())}\n")


def _fail(message: str, code: int) -> None:
    _say(message)
    raise SystemExit(code)


@app.command()
def analyze(
    paths: Annotated[list[Path], typer.Argument(help="traces (.json, .json.gz, .json.zst) or captures (folders)")],
    *,
    json: Json = False,
    floor_us: Annotated[
        float | None, typer.Option("--floor-us", min=0, max=1e6, help="measured T_sys of this device in µs, for ΔKT")
    ] = None,
    attribution: Annotated[
        Attribution, typer.Option(help="exclusive: no instant counts twice; paper: the published definitions")
    ] = Attribution.EXCLUSIVE,
    phase: Annotated[Phase | None, typer.Option(help="only the steps of this phase")] = None,
    step: Annotated[str | None, typer.Option(help="only the step of this name or number, from 0 on")] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="floors and replayed baselines of the place the traces were made in")
    ] = None,
    plain_ms: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e7, help="the step's duration without a profiler in ms: calibrates the advice"),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="rows in the table of dearest kernels")] = TOP_ROWS,
    html: Annotated[Path | None, typer.Option(help="write one self-contained HTML page")] = None,
    speedscope: Annotated[Path | None, typer.Option(help="write a file for https://www.speedscope.app")] = None,
    parquet: Annotated[Path | None, typer.Option(help="folder for steps, rows and dispatches as Parquet")] = None,
) -> None:
    """Decompose traces or captures into ΔFT, ΔCT, ΔKT, device time and HDBI."""
    from taxbreak_vllm.taxes.analyze import analyze as analyze_path

    _check_targets([html, speedscope], [*paths, baselines])
    floor_ns = None if floor_us is None else round(floor_us * 1000)
    with _opened(baselines) as store:
        breakdowns = [
            analyze_path(path, floor_ns=floor_ns, attribution=attribution, phase=phase, step=step, baselines=store)
            for path in paths
        ]
    if plain_ms is not None:
        from taxbreak_vllm.insight.evidence import with_plain_step

        breakdowns = [with_plain_step(breakdown, round(plain_ms * 1e6)) for breakdown in breakdowns]
    if html:
        from taxbreak_vllm.output.html import write_html

        write_html(breakdowns, html)
    if speedscope:
        from taxbreak_vllm.output.speedscope import write_speedscope

        write_speedscope(paths, speedscope)
    if parquet:
        from taxbreak_vllm.output.parquet import write_parquet

        write_parquet(breakdowns, parquet, floor_ns=floor_ns)
    advice = [_advise(breakdown) for breakdown in breakdowns]
    if json:
        parts = [_with_advice(breakdown, report) for breakdown, report in zip(breakdowns, advice, strict=True)]
        _print_json(parts[0] if len(parts) == 1 else b'{"breakdowns":[' + b",".join(parts) + b"]}")
        return
    for breakdown, report in zip(breakdowns, advice, strict=True):
        _print_breakdown(breakdown, report, top)


@app.command()
def fusion(
    path: Annotated[Path, typer.Argument(help="a trace (.json, .json.gz, .json.zst) or a capture (folder)")],
    *,
    json: Json = False,
    min_score: Annotated[
        float, typer.Option(min=0.01, max=1, help="proximity score a candidate needs; 1: always together")
    ] = 1.0,
    max_length: Annotated[int, typer.Option(min=2, max=64, help="longest chain, in kernels")] = 8,
    top: Annotated[int, typer.Option(min=0, help="rows in the table of chains")] = TOP_ROWS,
) -> None:
    """Find kernels that always run one after another, and the launches that fusing them would save."""
    from taxbreak_vllm.insight.fusion import fusion as find_fusion

    report = find_fusion(path, lengths=range(2, max_length + 1), min_score=min_score)
    if json:
        _print_json(report.to_json())
        return
    from taxbreak_vllm.output.text.insight import chain_table, fusion_lines, fusion_table

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
        float | None, typer.Option("--floor-us", min=0, max=1e6, help="measured T_sys of this device in µs, for ΔKT")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="rows in the table of ops and kernels")] = TOP_ROWS,
) -> None:
    """Show what moved from A to B: by phase, by family, by op and kernel."""
    from taxbreak_vllm.insight.diff import diff as compare
    from taxbreak_vllm.taxes.analyze import analyze as analyze_path

    floor_ns = None if floor_us is None else round(floor_us * 1000)
    found = compare(analyze_path(a, floor_ns=floor_ns), analyze_path(b, floor_ns=floor_ns))
    if json:
        _print_json(found.to_json())
        return
    from taxbreak_vllm.output.text.insight import diff_lines, diff_tables

    console = _console()
    for line in diff_lines(found):
        console.print(line, highlight=False, markup=False)
    for table in diff_tables(found, top):
        console.print(table)


@app.command()
def floor(
    *,
    baselines: Annotated[
        Path | None, typer.Option(help="store the floors in this SQLite file, made on first use")
    ] = None,
    device: Device = "",
    json: Json = False,
) -> None:
    """Measure the least that a launch, a graph and a dispatch cost on this machine; needs torch."""
    from taxbreak_vllm.baselines.store import Baselines
    from taxbreak_vllm.replay.device import default_device
    from taxbreak_vllm.replay.runner import measure_floors
    from taxbreak_vllm.replay.task import Options

    environment, floors = measure_floors(Options(device=device or default_device()))
    if baselines:
        with Baselines(baselines) as store:
            store.put_floors(environment, floors)
    if json:
        from msgspec.json import encode

        _print_json(encode({"schema": "taxbreak.floors/1", "environment": environment, "floors": floors}))
        return
    from taxbreak_vllm.output.text.replay import floor_lines, floor_table

    console = _console()
    for line in floor_lines(environment, floors):
        console.print(line, highlight=False, markup=False)
    console.print(floor_table(floors))


@app.command()
def replay(
    paths: Annotated[list[Path], typer.Argument(help="traces, captures or whole spools (folders)")],
    *,
    baselines: Store = Path("baselines.sqlite3"),
    device: Device = "",
    budget_s: Annotated[float | None, typer.Option(min=1, max=1e7, help="stop after this long (seconds)")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=1e5, help="longest one signature may take (seconds)")] = 30.0,
    memory_gib: Annotated[float, typer.Option(min=0.1, max=1e6, help="most memory one signature may take (GiB)")] = 4.0,
    runs: Annotated[int, typer.Option(min=5, help="measured runs a signature, after the warm-ups")] = 30,
    retry: Annotated[bool, typer.Option("--retry", help="try again what failed, crashed or timed out before")] = False,
    pause_above: Annotated[
        float | None, typer.Option(min=0, max=1, help="wait while the device is busier than this share")
    ] = None,
    module: Annotated[
        list[str] | None, typer.Option("--import", help="module that registers ops of your own; may be repeated")
    ] = None,
    json: Json = False,
) -> None:
    """Replay the ops of traces or captures alone and keep what they cost; resumable, needs torch."""
    from taxbreak_vllm.output.text.replay import progress_bar, replay_lines, trouble_table
    from taxbreak_vllm.replay.command import replay_paths
    from taxbreak_vllm.replay.device import default_device
    from taxbreak_vllm.replay.runner import Limits
    from taxbreak_vllm.replay.task import Options

    options = Options(
        device=device or default_device(), runs=runs, max_bytes=round(memory_gib * 2**30), modules=tuple(module or ())
    )
    with progress_bar() as report:
        found = replay_paths(
            paths,
            baselines,
            options,
            Limits(task_s=timeout_s, total_s=budget_s),
            retry=retry,
            pause_above=pause_above,
            report=report,
        )
    if json:
        from msgspec.json import encode

        _print_json(encode(found))
        return
    console = _console()
    for line in replay_lines(found):
        console.print(line, highlight=False, markup=False)
    if found.trouble:
        console.print(trouble_table(found))


@app.command()
def baselines(
    action: Annotated[Literal["list", "export", "import"], typer.Argument(help="what to do with the store")],
    file: Annotated[Path | None, typer.Argument(help="the file to write or read: JSON lines, one an entry")] = None,
    *,
    store: Annotated[Path, typer.Option("--baselines", help="the SQLite file")] = Path("baselines.sqlite3"),
    json: Json = False,
) -> None:
    """List what a store holds, write it to a file or take such a file in, so that a fleet measures once."""
    from taxbreak_vllm.baselines.store import Baselines
    from taxbreak_vllm.output.text.replay import environment_table, summaries

    if (action == "list") != (file is None):
        raise BaselineError(f"baselines {action} takes {'no file' if action == 'list' else 'a file'}")
    if action != "import" and not store.is_file():
        raise BaselineError(f"{store}: no such file")
    with Baselines(store) as opened:
        if action == "export" and file:
            count = opened.export(file)
        elif action == "import" and file:
            count = opened.take(file)
        else:
            count = sum(summary.entries for summary in summaries(opened))
        found = summaries(opened)
    if json:
        from msgspec.json import encode

        _print_json(encode({"action": action, "entries": count, "environments": found}))
        return
    console = _console()
    console.print(f"{count} entries", highlight=False)
    console.print(environment_table(found))


@app.command()
def serve(
    *,
    spool: Annotated[Path | None, typer.Option(help="folder the workers write to")] = None,
    host: Annotated[str | None, typer.Option(help="address to bind to")] = None,
    port: Annotated[int | None, typer.Option(help="port to bind to; 0 takes a free one")] = None,
    results: Annotated[Path | None, typer.Option(help="SQLite file of results")] = None,
    retention_s: Annotated[int | None, typer.Option(help="how long analyzed steps are kept (seconds)")] = None,
    window_s: Annotated[int | None, typer.Option(help="window of the hdbi gauge and the page (seconds)")] = None,
    baselines: Annotated[Path | None, typer.Option(help="SQLite file of floors and replayed baselines")] = None,
    replay: Annotated[bool | None, typer.Option(help="replay new signatures in the background")] = None,
    replay_core_ratio: Annotated[float | None, typer.Option(help="most of one core that replay may take")] = None,
    replay_device: Annotated[str | None, typer.Option(help="device to replay on; a GPU only when named here")] = None,
    captures_per_minute: Annotated[int | None, typer.Option(help="requests for steps taken a minute")] = None,
) -> None:
    """Run the sidecar: analyze the spool, serve /metrics, the API and the page."""
    from taxbreak_vllm.service.app import serve as run
    from taxbreak_vllm.settings import load_settings

    limits = {"retention_s": retention_s, "window_s": window_s, "captures_per_minute": captures_per_minute}
    replays = {"replay": replay, "replay_core_ratio": replay_core_ratio, "replay_device": replay_device}
    files = {"spool": spool, "results": results, "baselines": baselines}
    run(load_settings(host=host, port=port, **files, **limits, **replays))


@app.command()
def capture(
    *,
    url: Annotated[str, typer.Option(help="a sidecar, or a vLLM server that mounts /v1/taxbreak")] = (
        "http://127.0.0.1:9797"
    ),
    steps: Annotated[int, typer.Option(min=1, help="how many steps to record")] = 4,
    phase: Annotated[Phase | None, typer.Option(help="only steps of this phase")] = None,
    timeout_s: Annotated[float, typer.Option(min=1, max=3600, help="give up after this long (seconds)")] = 60.0,
    stacks: Annotated[bool, typer.Option("--stacks", help="record Python stacks too (slower)")] = False,
    server_id: Annotated[str | None, typer.Option(help="which server, where the spool has several")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TAXBREAK_API_KEY", help="bearer token")] = None,
    json: Json = False,
) -> None:
    """Record the next steps of a running server and print their breakdown."""
    from taxbreak_vllm.client import CaptureError, capture_steps
    from taxbreak_vllm.insight.advice import advise

    captured = capture_steps(
        url, steps=steps, phase=phase, timeout_s=timeout_s, stacks=stacks, server_id=server_id, api_key=api_key
    )
    advice = advise([captured.breakdown])
    if json:
        _print_json(_with_advice(captured.breakdown, advice))
    else:
        _print_breakdown(captured.breakdown, advice, TOP_ROWS)
    if captured.is_expired:
        raise CaptureError(captured.gap)
    if captured.gap:
        _say(captured.gap)


@app.command()
def control(
    *,
    url: Annotated[str, typer.Option(help="a sidecar, or a vLLM server that mounts /v1/taxbreak")] = (
        "http://127.0.0.1:9797"
    ),
    enable: Annotated[
        bool | None, typer.Option("--enable/--disable", help="record steps; steps are timed in any case")
    ] = None,
    sample_every: Annotated[
        int | None, typer.Option(min=2, max=2**31, help="record one step in this many of each kind")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=1e-9, max=1, help="share of the time with steps that recording may take")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=1, max=3600, help="wait for the workers this long (seconds)")] = 10.0,
    server_id: Annotated[str | None, typer.Option(help="which server, where the spool has several")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TAXBREAK_API_KEY", help="bearer token")] = None,
    json: Json = False,
) -> None:
    """Turn a running server's recording on or off, change its rate or budget; without a change, show it."""
    from taxbreak_vllm.client import control_server
    from taxbreak_vllm.output.text.breakdown import control_lines

    state = control_server(
        url,
        enabled=enable,
        sample_every=sample_every,
        overhead_budget_ratio=budget,
        timeout_s=timeout_s,
        server_id=server_id,
        api_key=api_key,
    )
    if json:
        import msgspec

        _print_json(msgspec.json.encode(state))
        return
    for line in control_lines(state):
        _console().print(line, highlight=False, markup=False)


@app.command()
def demo(*, once: Annotated[bool, typer.Option("--once", help="end after the table")] = False) -> None:
    """Start a tiny model on a real vLLM, send it real load, show the breakdown and the page."""
    from taxbreak_vllm.demo.run import run_demo

    raise typer.Exit(run_demo(once=once))


@contextmanager
def _opened(path: Path | None) -> "Iterator[Baselines | None]":
    """Open a store that must be there already."""
    if path is None:
        yield None
        return
    from taxbreak_vllm.baselines.store import Baselines

    if not path.is_file():
        raise BaselineError(f"{path}: no such file; 'taxbreak replay' makes it")
    with Baselines(path) as store:
        yield store


def _advise(breakdown: "Breakdown") -> "AdviceReport":
    """Advise on a breakdown; its trace is read for chains of kernels only where anything can be advised."""
    from taxbreak_vllm.insight.advice import advise
    from taxbreak_vllm.insight.evidence import distrust

    if distrust(breakdown) is not None:
        return advise([breakdown])
    from taxbreak_vllm.insight.fusion import fusion as find_fusion

    return advise([breakdown], fusion=find_fusion(breakdown.source.path))


def _with_advice(breakdown: "Breakdown", report: "AdviceReport") -> bytes:
    import msgspec

    return msgspec.json.encode(breakdown.to_builtins() | {"advice": report.to_builtins()})


def _print_breakdown(breakdown: "Breakdown", advice: "AdviceReport", top: int) -> None:
    from taxbreak_vllm.output.text.breakdown import advice_lines, step_table, summary_lines, top_table

    console = _console()
    for line in summary_lines(breakdown):
        console.print(line, highlight=False, markup=False)
    console.print(step_table(breakdown))
    if top:
        console.print(top_table(breakdown.steps[0] if len(breakdown.steps) == 1 else breakdown.total, top))
    for line in advice_lines(advice):
        console.print(line, highlight=False, markup=False)


def _print_json(data: bytes) -> None:
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def _console() -> "Console":
    from rich.console import Console  # a sixth of the start-up, which --json need not pay

    console = Console()  # a table piped into a file should not be cut at 80 columns
    return console if console.is_terminal else Console(width=160)


if __name__ == "__main__":
    main()
