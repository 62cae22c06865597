"""The tools of `taxbreak mcp`: their names, what a model is told of each, and every error of ours as one line.

In: `Questions`. Out: a server of the official SDK; whoever calls runs it, over stdio or HTTP.
"""

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import anyio
import anyio.from_thread
import msgspec
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field, ValidationError

from taxbreak_vllm.agents.answers import (
    Analysis,
    Comparison,
    HardwareLimit,
    Loops,
    Predictions,
    Reasoning,
    Slowness,
    Status,
    Steps,
    Turns,
    Waterfalls,
)
from taxbreak_vllm.agents.questions import Questions
from taxbreak_vllm.model import defaults
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.version import package_version

INSTRUCTIONS = """\
Is the host holding the GPU back on this vLLM server, or in a trace, which layer of it does, and what to change.
Begin with what_is_slow. Ask `why` before advising anybody: it has the evidence, the most a change can win and what
would refute it. Durations are integer nanoseconds (_ns), shares are 0 to 1 (_ratio). null is "could not be measured",
never 0; `notes` and `reasons` say why. Taxes (ΔFT Python and op dispatch, ΔCT library front-ends, ΔKT launch floors)
are host time; only what is exposed (device.idle.host_ns) did the device wait for, so only that can be won."""

Most = Annotated[int, Field(ge=1, le=100, description="longest list in the answer; the dearest or newest come first")]
OfPhase = Annotated[Phase | None, Field(description="only steps of this phase; null: all")]
Window = Annotated[int | None, Field(ge=1, description="look back this many seconds; null: the server's own window")]
ServerId = Annotated[str | None, Field(description="which vLLM server, where several write into one spool")]
Trace = Annotated[
    str | None,
    Field(description="a trace (.json, .json.gz, .json.zst) or capture folder, relative to the folder of traces"),
]
Side = Annotated[
    str, Field(description="a trace or capture folder, or of the server step:STEP_ID or capture:CAPTURE_ID")
]

P = ParamSpec("P")
R = TypeVar("R")


class TaxbreakMCP(MCPServer[Any]):
    """A server whose errors are one line each."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None) -> Any:  # noqa: ANN401 - as the SDK's
        """Call a tool; raises ToolError in one line."""
        try:
            return await super().call_tool(name, arguments, context)
        except UnexpectedToolError as error:
            raise UnexpectedToolError(f"{name}: a fault of taxbreak's own; its log says more") from error.__cause__
        except ToolError as error:
            text = str(error)
            if isinstance(error.__cause__, ValidationError):
                first = error.__cause__.errors()[0]
                text = f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise ToolError(" ".join(text.removeprefix(f"Error executing tool {name}: ").split())) from error.__cause__


def create_server(questions: Questions, *, allow_control: bool = False) -> MCPServer[Any]:
    """Make the server; with `allow_control` it has the one tool that makes a vLLM server do something."""
    server = TaxbreakMCP(
        "taxbreak", instructions=INSTRUCTIONS, version=package_version(), log_level="WARNING", subscriptions=False
    )
    reads = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

    def tool(function: Callable[P, R]) -> None:
        server.add_tool(_told(function), annotations=reads)

    def what_is_slow(
        trace: Trace = None,
        phase: OfPhase = None,
        window_s: Window = None,
        server_id: ServerId = None,
        most: Most = 10,
    ) -> Annotated[CallToolResult, Slowness]:
        """Tell where the time of engine steps goes, phase by phase, the dearest kernels, and the verdict in short.

        Of the running server, or of a trace file if one is named. Ask this first."""
        return _result(questions.slowness(trace=trace, phase=phase, window_s=window_s, server_id=server_id, most=most))

    def why(
        trace: Trace = None,
        phase: OfPhase = None,
        window_s: Window = None,
        server_id: ServerId = None,
        most: Most = 10,
    ) -> Annotated[CallToolResult, Reasoning]:
        """Tell why it is slow and what to change: each change with its finding, settings, the most it can win and what
        would refute it, and the evidence it stands on; or why nothing can be advised."""
        return _result(questions.reasoning(trace=trace, phase=phase, window_s=window_s, server_id=server_id, most=most))

    def list_steps(
        phase: OfPhase = None,
        limit: Annotated[int, Field(ge=1, le=100, description="how many")] = 20,
        cursor: Annotated[str | None, Field(max_length=200, description="`next` of the answer before")] = None,
    ) -> Annotated[CallToolResult, Steps]:
        """List the server's recorded and analyzed steps, newest first: duration, taxes, exposed time, HDBI of each."""
        return _result(questions.steps(phase=phase, limit=limit, cursor=cursor))

    def get_step(
        step_id: Annotated[str, Field(description="of list_steps")], most: Most = 10
    ) -> Annotated[CallToolResult, Analysis]:
        """Take one recorded step of the server apart: host by layer, device by cause of idleness, dearest kernels."""
        return _result(questions.step(step_id, most))

    def iterations(most: Most = 10) -> Annotated[CallToolResult, Loops]:
        """Tell what the time between an engine's steps went to: scheduling, messages between processes, waiting."""
        return _result(questions.loops(most))

    def requests(
        sort: Annotated[Literal["newest", "slowest"], Field(description="which requests come first")] = "slowest",
        most: Most = 10,
    ) -> Annotated[CallToolResult, Waterfalls]:
        """Tell what requests went through stage by stage, from their arrival to the end of their answers."""
        return _result(questions.waterfalls(sort=sort, most=most))

    def hardware_limit(
        trace: Trace = None,
        phase: OfPhase = None,
        window_s: Window = None,
        server_id: ServerId = None,
        most: Most = 10,
    ) -> Annotated[CallToolResult, HardwareLimit]:
        """Tell how far the device is from what its hardware can do, phase by phase: MFU, MBU, what bounds it, and one
        bar of its time from the hard limit to the host's layers. Of the server, or of a trace's recorded shapes."""
        return _result(questions.limit(trace=trace, phase=phase, window_s=window_s, server_id=server_id, most=most))

    def transition(
        phase: OfPhase = None,
        window_s: Window = None,
        server_id: ServerId = None,
        most: Most = 30,
    ) -> Annotated[CallToolResult, Turns]:
        """Tell from which size of batch on the server's device, not its host, decides how long a step takes, by phase:
        below it a larger batch is free."""
        return _result(questions.transitions(phase=phase, window_s=window_s, server_id=server_id, most=most))

    def server_status(most: Most = 10) -> Annotated[CallToolResult, Status]:
        """Tell which vLLM servers and workers run, whether they record, and how much was recorded and analyzed."""
        return _result(questions.status(most))

    def compare(a: Side, b: Side, most: Most = 10) -> Annotated[CallToolResult, Comparison]:
        """Tell what moved from a (before) to b (after): by phase, by family of kernels, by op and kernel."""
        return _result(questions.comparison(a, b, most))

    def analyze_trace(
        trace: Annotated[str, Field(description="a trace or capture folder, relative to the folder of traces")],
        phase: OfPhase = None,
        step: Annotated[str | None, Field(description="only the step of this name or number, from 0 on")] = None,
        rank: Annotated[int | None, Field(ge=0, description="only this process of a file that joins several")] = None,
        floor_us: Annotated[float | None, Field(ge=0, le=1e6, description="measured launch floor in µs")] = None,
        plain_ms: Annotated[
            float | None, Field(gt=0, le=1e7, description="the step's duration without a profiler in ms: calibrates")
        ] = None,
        most: Most = 10,
    ) -> Annotated[CallToolResult, Analysis]:
        """Decompose a trace of the PyTorch profiler, or a capture, step by step, with advice."""
        choice = {"phase": phase, "step": step, "rank": rank}
        floor_ns = None if floor_us is None else round(floor_us * 1e3)
        plain_ns = None if plain_ms is None else round(plain_ms * 1e6)
        return _result(questions.analysis(trace, most=most, floor_ns=floor_ns, plain_ns=plain_ns, **choice))

    def what_if(
        trace: Trace = None,
        host: Annotated[
            list[str] | None,
            Field(description="times that host work takes: 1.3, 0.5..0.7, or of one class (python=2)"),
        ] = None,
        kernels: Annotated[
            list[str] | None, Field(description="times that kernels take: 0.8, or of one family (gemm=0.6)")
        ] = None,
        graph: Annotated[
            Literal["full"] | None,
            Field(description="the launches of a step as one graph, where its cost was measured"),
        ] = None,
        fuse: Annotated[
            list[str] | None, Field(description="kernels that follow one another as one launch: NAME,NAME")
        ] = None,
        floor_us: Annotated[float | None, Field(ge=0, le=1e6, description="another launch floor, in µs")] = None,
        no_sync: Annotated[list[str] | None, Field(description="calls with this in their name do not wait")] = None,
        is_async: Annotated[bool, Field(description="tokens are waited for one step later")] = False,
        rank: Annotated[int | None, Field(ge=0, description="of a trace: only this process of several")] = None,
        step_id: Annotated[str | None, Field(description="of list_steps; null: the newest of each phase")] = None,
        phase: OfPhase = None,
        server_id: ServerId = None,
        most: Most = 10,
    ) -> Annotated[CallToolResult, Predictions]:
        """Replay recorded steps of the running server, or a trace if one is named, under a change: what a step would
        take, within what interval, and what would refute it; or `refused`, with the reason, which is an answer too."""
        change = {
            "host": host or (),
            "kernels": kernels or (),
            "graph": graph,
            "fuse": fuse or (),
            "floor_us": floor_us,
            "no_sync": no_sync or (),
            "is_async": is_async,
        }
        return _result(
            questions.predictions(
                trace, change, rank=rank, step_id=step_id, phase=phase, server_id=server_id, most=most
            )
        )

    for function in (
        what_is_slow,
        why,
        list_steps,
        get_step,
        iterations,
        requests,
        hardware_limit,
        transition,
        server_status,
        compare,
        what_if,
        analyze_trace,
    ):
        tool(function)
    if allow_control:
        server.add_tool(_capture(questions), name="capture", annotations=ToolAnnotations(read_only_hint=False))
    return server


def _capture(questions: Questions) -> Callable[..., Awaitable[CallToolResult]]:
    async def capture(
        context: Context[Any, Any],
        steps: Annotated[int, Field(ge=1, le=defaults.MAX_CAPTURE_STEPS, description="how many steps to record")] = 4,
        phase: OfPhase = None,
        timeout_s: Annotated[
            float, Field(ge=1, le=defaults.MAX_CAPTURE_TIMEOUT_S, description="give up after this many seconds")
        ] = defaults.CAPTURE_TIMEOUT_S,
        stacks: Annotated[bool, Field(description="with Python stacks, which slows the steps 4-8 times")] = False,
        max_stall_ms: Annotated[
            float | None,
            Field(gt=0, le=60_000, description="how long stopping one recording may hold up the server"),
        ] = None,
        server_id: ServerId = None,
        most: Most = 10,
    ) -> Annotated[CallToolResult, Analysis]:
        """Record the running server's next steps, wait for their analysis and tell it; each costs that step some time.

        An idle server has no next step: send it requests meanwhile."""
        wish = {"steps": steps, "phase": phase, "timeout_s": timeout_s, "stacks": stacks, "server_id": server_id}
        wish["max_stall_ms"] = max_stall_ms

        def report(recorded: int, analyzed: int) -> None:
            words = f"{recorded} of {steps} steps recorded, {analyzed} analyzed"
            anyio.from_thread.check_cancelled()
            anyio.from_thread.run(context.report_progress, recorded + analyzed, 2 * steps, words)

        found = await anyio.to_thread.run_sync(_told(functools.partial(questions.capture, report, most=most, **wish)))
        return _result(found)

    return capture


def _told(function: Callable[P, R]) -> Callable[P, R]:
    """Let what a question may run into reach the model in its own words; the rest is a fault of ours."""

    @functools.wraps(function)
    def ask(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TaxbreakError as error:
            raise ToolError(str(error)) from error
        except msgspec.ValidationError as error:
            raise ToolError(f"no answer of this version of taxbreak: {error}") from error
        except OSError as error:
            raise ToolError(f"{error.filename or 'this machine'}: {error.strerror or error}") from error

    return ask


def _result(answer: Mapping[str, Any]) -> CallToolResult:
    """Say an answer as structure, and as the same JSON in text for models that see only that."""
    text = msgspec.json.encode(answer).decode()
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=answer)
