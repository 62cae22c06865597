"""The commands, as typer's app: it parses words, calls one of them and shows its help."""

from typing import Annotated

import typer

from taxbreak_vllm.cli import agents, archive, doctor, fleet, measuring, servers, traces, transition, whatif, workload
from taxbreak_vllm.model.version import package_version
from taxbreak_vllm.output.text.printed import print_text

_HELP_NAMES = {"help_option_names": ["-h", "--help"]}  # commands take these of the app

app = typer.Typer(name="taxbreak", context_settings=_HELP_NAMES, pretty_exceptions_enable=False)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print_text(f"taxbreak {package_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def taxbreak(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Is the host holding the GPU back, which layer of it, and what to change."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (
    traces.analyze,
    traces.fusion,
    traces.diff,
    whatif.whatif,
    transition.transition,
    measuring.floor,
    measuring.replay,
    measuring.baselines,
    servers.serve,
    archive.archive,
    servers.capture,
    servers.advice,
    servers.control,
    agents.mcp,
    doctor.doctor,
    servers.demo,
):
    app.command()(command)

app.add_typer(workload.workload)
app.add_typer(fleet.fleet)
