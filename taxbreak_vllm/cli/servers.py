"""Commands that run servers or speak to running ones: serve, capture, control, demo."""

from pathlib import Path
from typing import Annotated

import typer

from taxbreak_vllm.cli.options import Json, ReadKey
from taxbreak_vllm.cli.printing import TOP_ROWS, print_breakdown, print_json, say, with_advice
from taxbreak_vllm.model import defaults
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.output.text.printed import print_text

Url = Annotated[str, typer.Option(help="a sidecar, or a vLLM server that mounts /v1/taxbreak")]


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
    otlp: Annotated[str | None, typer.Option(help="OpenTelemetry collector (OTLP over HTTP) to export to")] = None,
    archive: Annotated[str | None, typer.Option(help="object store or folder to copy captures and tables to")] = None,
) -> None:
    """Run the sidecar: analyze the spool, serve /metrics, the API and the page."""
    from taxbreak_vllm.service.app import serve as run
    from taxbreak_vllm.settings import load_settings

    limits = {"retention_s": retention_s, "window_s": window_s, "captures_per_minute": captures_per_minute}
    replays = {"replay": replay, "replay_core_ratio": replay_core_ratio, "replay_device": replay_device}
    files = {"spool": spool, "results": results, "baselines": baselines}
    run(load_settings(host=host, port=port, otlp=otlp, archive=archive, **files, **limits, **replays))


def capture(
    *,
    url: Url = defaults.URL,
    steps: Annotated[int, typer.Option(min=1, help="how many steps to record")] = defaults.CAPTURE_STEPS,
    phase: Annotated[Phase | None, typer.Option(help="only steps of this phase")] = None,
    timeout_s: Annotated[
        float, typer.Option(min=1, max=defaults.MAX_CAPTURE_TIMEOUT_S, help="give up after this long (seconds)")
    ] = defaults.CAPTURE_TIMEOUT_S,
    stacks: Annotated[bool, typer.Option("--stacks", help="record Python stacks too (slower)")] = False,
    max_stall_ms: Annotated[
        float | None,
        typer.Option(min=1, max=60_000, help="how long stopping a recording may hold up the server (ms)"),
    ] = None,
    server_id: Annotated[str | None, typer.Option(help="which server, where the spool has several")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TAXBREAK_API_KEY", help="bearer token")] = None,
    json: Json = False,
) -> None:
    """Record the next steps of a running server and print their breakdown, and what its engines' iterations went to."""
    from taxbreak_vllm.cli.client import CaptureError, capture_steps
    from taxbreak_vllm.insight.advice import advise
    from taxbreak_vllm.insight.second import device_seconds

    captured = capture_steps(
        url,
        steps=steps,
        phase=phase,
        timeout_s=timeout_s,
        stacks=stacks,
        max_stall_ms=max_stall_ms,
        server_id=server_id,
        api_key=api_key,
    )
    advice = captured.advice or advise([captured.breakdown])
    seconds = device_seconds(captured.engines, captured.breakdown)
    if json:
        print_json(with_advice(captured.breakdown, advice, seconds=seconds))
    else:
        print_breakdown(captured.breakdown, advice, TOP_ROWS, seconds=seconds)
    if captured.is_expired:
        raise CaptureError(captured.gap)
    if captured.gap:
        say(captured.gap)


def advice(
    *,
    url: Url = defaults.URL,
    server_id: Annotated[str | None, typer.Option(help="which server, where the spool has several")] = None,
    api_key: ReadKey = None,
    json: Json = False,
) -> None:
    """Say what to change about a running server, and whether what was changed before its last start held."""
    from taxbreak_vllm.cli.client import read_advice

    report = read_advice(url, server_id=server_id, api_key=api_key)
    if json:
        import msgspec

        print_json(msgspec.json.encode(report))
        return
    from taxbreak_vllm.output.text.advice import advice_lines

    print_text(*advice_lines(report))


def control(
    *,
    url: Url = defaults.URL,
    enable: Annotated[
        bool | None, typer.Option("--enable/--disable", help="record steps; steps are timed in any case")
    ] = None,
    sample_every: Annotated[
        int | None,
        typer.Option(
            min=defaults.MIN_SAMPLE_EVERY,
            max=defaults.MAX_SAMPLE_EVERY,
            help="record one step in this many of each kind",
        ),
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
    from taxbreak_vllm.cli.client import control_server
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

        print_json(msgspec.json.encode(state))
        return
    print_text(*control_lines(state))


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="end after the table")] = False,
    fleet: Annotated[
        Path | None, typer.Option(help="also archive what was recorded, and write the page of the fleet to this file")
    ] = None,
) -> None:
    """Start a tiny model on a real vLLM, send it real load, show the breakdown and the page."""
    from taxbreak_vllm.demo.run import run_demo

    raise typer.Exit(run_demo(once=once, fleet_page=fleet))
