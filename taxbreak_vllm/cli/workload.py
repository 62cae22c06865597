"""The commands that ask what a server would make of other traffic, or of other settings."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taxbreak_vllm.cli.options import Json, ReadKey
from taxbreak_vllm.cli.printing import print_json
from taxbreak_vllm.cli.traffic import traffic_at
from taxbreak_vllm.model.sweep import Aim
from taxbreak_vllm.output.text.printed import print_text

if TYPE_CHECKING:
    from taxbreak_vllm.model.sweep import Swept
    from taxbreak_vllm.model.workload import Prediction

workload = typer.Typer(
    name="workload", help="What this server would make of other traffic or settings, by vLLM's own scheduler."
)

Recorded = Annotated[
    Path, typer.Argument(help="a spool, SPOOL/SERVER of one server, or its traffic folder; of several the newest")
]
Asked = Annotated[
    str,
    typer.Argument(
        metavar="SPOOL|URL",
        help="a spool, SPOOL/SERVER, or the URL of a sidecar or a vLLM with our routes; of several servers the newest",
    ),
]
Html = Annotated[Path | None, typer.Option(help="write one self-contained HTML page")]
ServerId = Annotated[str | None, typer.Option(help="which server, of a URL with several")]


@workload.command()
def check(source: Asked, *, server_id: ServerId = None, api_key: ReadKey = None, json: Json = False) -> None:
    """Schedule recorded requests again, in virtual time: are all steps batched as they were?"""
    import msgspec

    from taxbreak_vllm.model.workload import Identities
    from taxbreak_vllm.output.text.workload import identity_lines
    from taxbreak_vllm.workload.process import ask
    from taxbreak_vllm.workload.task import Check

    with traffic_at(source, server_id=server_id, api_key=api_key) as path:
        answer = ask(Check(str(path)))
    found = msgspec.json.decode(answer, type=Identities)
    if json:
        print_json(answer)
    else:
        print_text(*identity_lines(found))
    if not all(engine.is_identical for engine in found.engines):
        raise typer.Exit(1)


@workload.command()
def fit(source: Asked, *, server_id: ServerId = None, api_key: ReadKey = None, json: Json = False) -> None:
    """Tell what recorded steps and requests cost, by what they work on, and where the server stalled."""
    import msgspec

    from taxbreak_vllm.model.workload import Fits
    from taxbreak_vllm.output.text.workload import fit_lines, fit_table
    from taxbreak_vllm.workload.process import ask
    from taxbreak_vllm.workload.task import Fit

    with traffic_at(source, server_id=server_id, api_key=api_key) as path:
        answer = ask(Fit(str(path)))
    if json:
        print_json(answer)
        return
    found = msgspec.json.decode(answer, type=Fits)
    print_text(*fit_lines(found), fit_table(found))


@workload.command()
def predict(
    source: Asked,
    *,
    load: Annotated[
        str, typer.Option(help="2x: requests come twice as fast; or a file of Azure, Mooncake, BurstGPT or vllm bench")
    ] = "1x",
    arrivals: Annotated[
        str | None, typer.Option(help="gamma:0.3: at the same rate, gaps of that shape (1 is Poisson, less is bursty)")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="max_num_seqs=32: another value in vLLM's scheduler_config, or num_gpu_blocks"),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=1024, help="as many such servers, requests in turn")] = 1,
    host: Annotated[
        str,
        typer.Option(
            help="1.3: times that the host's part takes; -1ms: off each step of the engine's loop, or +1ms on it"
        ),
    ] = "1",
    device: Annotated[float, typer.Option(min=0.01, max=100, help="times that the device's part takes")] = 1.0,
    graph: Annotated[
        str | None, typer.Option(help="full: the launches of a worker's step as one graph, by whatif of its captures")
    ] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="floors of the place the captures were made in, for --graph")
    ] = None,
    slo: Annotated[str, typer.Option(help="ttft=500ms,tpot=50ms,e2e=10s: the share of requests that keep to it")] = "",
    html: Html = None,
    server_id: ServerId = None,
    api_key: ReadKey = None,
    json: Json = False,
) -> None:
    """Predict TTFT, TPOT and throughput under other traffic or settings, after checks that end it where they fail."""
    import msgspec

    from taxbreak_vllm.cli.opening import store
    from taxbreak_vllm.model.workload import Prediction
    from taxbreak_vllm.output.text.workload import prediction_lines, prediction_table
    from taxbreak_vllm.workload.asked import predict_task
    from taxbreak_vllm.workload.process import ask
    from taxbreak_vllm.workload.worker import with_worker

    task = predict_task(
        source,
        load=load,
        arrivals=arrivals,
        settings=settings or (),
        replicas=replicas,
        host=host,
        device=device,
        graph=graph,
        slo=slo,
    )
    with traffic_at(source, server_id=server_id, api_key=api_key) as path, store(baselines) as known:
        change = with_worker(task.change, path, baselines=known)
        answer = ask(msgspec.structs.replace(task, path=str(path), change=change))
    found = msgspec.json.decode(answer, type=Prediction)
    _write_page(found, html)
    if json:
        print_json(answer)
    else:
        print_text(*prediction_lines(found))
        if found.predicted is not None:
            print_text(prediction_table(found))
    if found.predicted is None:
        raise typer.Exit(1)


@workload.command()
def sweep(
    source: Asked,
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="max_num_seqs=8,16,32: values in vLLM's scheduler_config, or of num_gpu_blocks"),
    ] = None,
    load: Annotated[
        str | None, typer.Option(help="0.5x,1x,2x, or a file as predict takes it; with --for throughput the two ends")
    ] = None,
    arrivals: Annotated[
        str | None, typer.Option(help="gamma:0.3: at the same rate, gaps of that shape (1 is Poisson, less is bursty)")
    ] = None,
    replicas: Annotated[str | None, typer.Option(help="1,2,4 such servers; with --for replicas the two ends")] = None,
    host: Annotated[str, typer.Option(help="1,1.3,-1ms: what the host's part takes, as predict takes it")] = "1",
    device: Annotated[str, typer.Option(help="1,0.7: times that the device's part takes")] = "1",
    slo: Annotated[str, typer.Option(help="ttft=500ms,tpot=50ms,e2e=10s: what requests are to keep to")] = "",
    attainment: Annotated[
        float, typer.Option(min=0.01, max=1, help="the share of requests that must keep to the SLO")
    ] = 0.9,
    aim: Annotated[
        Aim | None,
        typer.Option("--for", help="of each setting the greatest load, or the fewest replicas, that keep the SLO"),
    ] = None,
    max_points: Annotated[int, typer.Option(min=1, max=100_000, help="most points that may be asked for")] = 256,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="processes; as many as there are cores by default")
    ] = None,
    ray: Annotated[str | None, typer.Option(help="on Ray: auto, an address, or local")] = None,
    html: Html = None,
    server_id: ServerId = None,
    api_key: ReadKey = None,
    json: Json = False,
) -> None:
    """Predict every combination of settings and loads, or search in each under an SLO, on all cores or on Ray."""
    import msgspec

    from taxbreak_vllm.model.sweep import Swept
    from taxbreak_vllm.output.text.sweep import progress_bar, sweep_lines, sweep_table
    from taxbreak_vllm.workload.asked import sweep_task
    from taxbreak_vllm.workload.process import ask
    from taxbreak_vllm.workload.worker import with_worker

    task = sweep_task(
        source,
        load=load,
        arrivals=arrivals,
        settings=settings or (),
        replicas=replicas,
        host=host,
        device=device,
        slo=slo,
        aim=aim,
        attainment=attainment,
        max_points=max_points,
        num_workers=workers or len(os.sched_getaffinity(0)),
        ray=ray,
    )
    with progress_bar() as report, traffic_at(source, server_id=server_id, api_key=api_key) as path:
        by_host = {cell.change.host: cell.change for cell in task.cells}
        told = {host: with_worker(change, path).worker for host, change in by_host.items()}
        cells = tuple(
            msgspec.structs.replace(cell, change=msgspec.structs.replace(cell.change, worker=told[cell.change.host]))
            for cell in task.cells
        )
        asked = msgspec.structs.replace(task, path=str(path), cells=cells)
        answer = ask(asked, lambda at: report(at.done, at.total, at.doing))
    found = msgspec.json.decode(answer, type=Swept)
    _write_page(found, html)
    if json:
        print_json(answer)
    else:
        print_text(*sweep_lines(found), *([sweep_table(found)] if found.points else []))
    if all(point.predicted is None for point in found.points):
        raise typer.Exit(1)


@workload.command()
def export(
    path: Recorded, folder: Annotated[Path, typer.Argument(help="a new folder for requests.parquet and steps.parquet")]
) -> None:
    """Write recorded requests and steps as Parquet."""
    from taxbreak_vllm.output.workload_parquet import write_traffic
    from taxbreak_vllm.workload.recording import read_engines

    write_traffic(read_engines(path), folder)


def _write_page(found: "Prediction | Swept", html: Path | None) -> None:
    if html is not None:
        from taxbreak_vllm.output.workload_html import write_workload_html

        write_workload_html(found, html)
