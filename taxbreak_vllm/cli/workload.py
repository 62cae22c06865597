"""The commands that ask what a server would make of other traffic, or of other settings."""

from pathlib import Path
from typing import Annotated

import typer

from taxbreak_vllm.cli.options import Json
from taxbreak_vllm.cli.printing import print_json
from taxbreak_vllm.output.text.printed import print_text

workload = typer.Typer(
    name="workload", help="What this server would make of other traffic or settings, by vLLM's own scheduler."
)

Recorded = Annotated[
    Path, typer.Argument(help="a spool, SPOOL/SERVER of one server, or its traffic folder; of several the newest")
]


@workload.command()
def check(path: Recorded, *, json: Json = False) -> None:
    """Schedule recorded requests again, in virtual time: are all steps batched as they were?"""
    import msgspec

    from taxbreak_vllm.model.workload import Identities
    from taxbreak_vllm.output.text.workload import identity_lines
    from taxbreak_vllm.workload.process import ask
    from taxbreak_vllm.workload.task import Check

    answer = ask(Check(str(path)))
    found = msgspec.json.decode(answer, type=Identities)
    if json:
        print_json(answer)
    else:
        print_text(*identity_lines(found))
    if not all(engine.is_identical for engine in found.engines):
        raise typer.Exit(1)


@workload.command()
def fit(path: Recorded, *, json: Json = False) -> None:
    """Tell what recorded steps and requests cost, by what they work on, and where the server stalled."""
    import msgspec

    from taxbreak_vllm.model.workload import Fits
    from taxbreak_vllm.output.text.workload import fit_lines, fit_table
    from taxbreak_vllm.workload.process import ask
    from taxbreak_vllm.workload.task import Fit

    answer = ask(Fit(str(path)))
    if json:
        print_json(answer)
        return
    found = msgspec.json.decode(answer, type=Fits)
    print_text(*fit_lines(found), fit_table(found))


@workload.command()
def predict(
    path: Recorded,
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
    host: Annotated[float, typer.Option(min=0.01, max=100, help="times that the host's part takes")] = 1.0,
    device: Annotated[float, typer.Option(min=0.01, max=100, help="times that the device's part takes")] = 1.0,
    slo: Annotated[str, typer.Option(help="ttft=500ms,tpot=50ms,e2e=10s: the share of requests that keep to it")] = "",
    json: Json = False,
) -> None:
    """Predict TTFT, TPOT and throughput under other traffic or settings, after checks that end it where they fail."""
    import msgspec

    from taxbreak_vllm.model.workload import Prediction
    from taxbreak_vllm.output.text.workload import prediction_lines, prediction_table
    from taxbreak_vllm.workload.asked import predict_task
    from taxbreak_vllm.workload.process import ask

    task = predict_task(
        path,
        load=load,
        arrivals=arrivals,
        settings=settings or (),
        replicas=replicas,
        host=host,
        device=device,
        slo=slo,
    )
    answer = ask(task)
    found = msgspec.json.decode(answer, type=Prediction)
    if json:
        print_json(answer)
    else:
        print_text(*prediction_lines(found))
        if found.predicted is not None:
            print_text(prediction_table(found))
    if found.predicted is None:
        raise typer.Exit(1)


@workload.command()
def export(
    path: Recorded, folder: Annotated[Path, typer.Argument(help="a new folder for requests.parquet and steps.parquet")]
) -> None:
    """Write recorded requests and steps as Parquet."""
    from taxbreak_vllm.output.workload_parquet import write_traffic
    from taxbreak_vllm.workload.recording import read_engines

    write_traffic(read_engines(path), folder)
