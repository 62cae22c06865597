"""The command that tells from which size of batch on the device decides how long a step takes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from taxbreak_vllm.cli.options import FloorUs, Json, Rank, ReadKey, floor_ns
from taxbreak_vllm.cli.printing import print_json
from taxbreak_vllm.cli.servers import Url
from taxbreak_vllm.model import defaults
from taxbreak_vllm.model.errors import SettingsError, TraceFormatError
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.transition import SizedStep, Transitions
from taxbreak_vllm.output.text.printed import print_text
from taxbreak_vllm.taxes.terms import Terms


def transition(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="traces, captures or whole spools (folders), of one model and place; none: ask a server"),
    ] = None,
    *,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="requests in a step of each trace, in their order, where traces do not tell"),
    ] = None,
    url: Url = defaults.URL,
    server_id: Annotated[str | None, typer.Option(help="which server, where the spool has several")] = None,
    window_s: Annotated[int | None, typer.Option(min=1, help="of a server: look back this long (seconds)")] = None,
    phase: Annotated[Phase | None, typer.Option(help="only the steps of this phase")] = None,
    floor_us: FloorUs = None,
    rank: Rank = None,
    api_key: ReadKey = None,
    json: Json = False,
) -> None:
    """Tell from which size of batch on the device, not the host, decides how long a step takes: TKLQT, HDBI."""
    if paths:
        found = _of_paths(paths, batch or (), Terms(floor_ns=floor_ns(floor_us), rank=rank), phase)
    else:
        if batch:
            raise SettingsError("--batch is of traces, one for each: name the traces")
        from taxbreak_vllm.cli.client import read_transitions

        found = read_transitions(url, server_id=server_id, phase=phase, window_s=window_s, api_key=api_key)
    if json:
        print_json(found.to_json())
        return
    from taxbreak_vllm.output.text.transition import transition_text

    print_text(*transition_text(found))


def _of_paths(paths: Sequence[Path], batches: Sequence[int], terms: Terms, phase: Phase | None) -> Transitions:
    from taxbreak_vllm.insight.transition import transitions

    if batches and len(batches) != len(paths):
        raise SettingsError(f"--batch is given {len(batches)} times for {len(paths)} traces: one for each is needed")
    steps: list[SizedStep] = []
    for place, path in enumerate(paths):
        own = list(_sized(path, terms, batches[place] if batches else None))
        if not any(step.requests for step in own):
            raise SettingsError(
                f"{path}: does not tell how many requests a step has: say it with --batch, once a trace"
            )
        steps += own
    found = transitions(step for step in steps if phase in (None, step.phase))
    if not found:
        raise TraceFormatError(f"{paths[0]}: no step of phase {phase or 'other than idle'} in this trace or another")
    return Transitions(transitions=found)


def _sized(path: Path, terms: Terms, requests: int | None) -> Iterator[SizedStep]:
    from taxbreak_vllm.cli.analyses import whole
    from taxbreak_vllm.cli.opening import opened
    from taxbreak_vllm.spool.layout import recordings

    for one in recordings(path):
        with opened(one, terms) as recording:
            breakdown = whole(recording)
        for step in breakdown.steps:
            yield SizedStep.of(step, dilation=breakdown.calibration.dilation, requests=requests)
