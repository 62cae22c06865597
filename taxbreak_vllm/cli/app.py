"""The commands, as typer's app: it parses words, calls one of them and shows its help."""

import typer

from taxbreak_vllm.cli import agents, doctor, measuring, servers, traces, whatif

app = typer.Typer(
    name="taxbreak",
    help="Is the host holding the GPU back, which layer of it, and what to change.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    traces.analyze,
    traces.fusion,
    traces.diff,
    whatif.whatif,
    measuring.floor,
    measuring.replay,
    measuring.baselines,
    servers.serve,
    servers.capture,
    servers.advice,
    servers.control,
    agents.mcp,
    doctor.doctor,
    servers.demo,
):
    app.command()(command)
