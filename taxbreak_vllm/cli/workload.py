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
