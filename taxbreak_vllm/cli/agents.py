"""The command that serves agents: mcp."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taxbreak_vllm.cli.servers import Url
from taxbreak_vllm.model import defaults
from taxbreak_vllm.model.errors import SettingsError

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from taxbreak_vllm.agents.questions import Param
    from taxbreak_vllm.cli.client import Params

_PATH = "/mcp"
_REPLAY_S = 70.0  # a server gives a replay up after 60


def mcp(
    *,
    url: Url = defaults.URL,
    traces: Annotated[Path, typer.Option(help="the one folder that traces and captures are read from")] = Path(),
    baselines: Annotated[
        Path | None, typer.Option(help="floors of the place that traces were recorded in, for graphs")
    ] = None,
    allow_control: Annotated[bool, typer.Option("--allow-control", help="let agents record steps, too")] = False,
    http: Annotated[bool, typer.Option("--http", help="serve streamable HTTP; by default stdin and stdout")] = False,
    host: Annotated[str, typer.Option(help="address to bind to, with --http")] = defaults.HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to bind to; 0 takes a free one")] = 9798,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TAXBREAK_API_KEY", help="bearer token: given to the server, asked for with --http"),
    ] = None,
) -> None:
    """Answer agents by the Model Context Protocol: what is slow, why, what moved; needs the extra mcp."""
    try:
        import mcp.server.mcpserver as _  # noqa: F401 - whether the extra is there, and no earlier SDK
    except ImportError:
        raise SettingsError("taxbreak mcp needs version 2 of the MCP SDK: pip install 'taxbreak-vllm[mcp]'") from None
    from taxbreak_vllm.agents.questions import Questions
    from taxbreak_vllm.agents.server import create_server
    from taxbreak_vllm.agents.traces import Traces
    from taxbreak_vllm.settings import checked_key

    if baselines is not None and not baselines.is_file():
        raise SettingsError(f"--baselines {baselines}: no such file; 'taxbreak floor --baselines' makes it")
    key = None if api_key is None else checked_key(api_key)
    server = create_server(
        Questions(_Server(url, key), Traces(traces, baselines=baselines)), allow_control=allow_control
    )
    if http:
        _serve(server, host, port, key)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # reading standard input is not to be interrupted
        server.run("stdio")


class _Server:
    """Asks one server for all the tools."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._api_key = api_key

    def get(self, path: str, **params: "Param") -> dict[str, Any]:
        from taxbreak_vllm.cli.client import read

        return read(self._url, path, params=_given(params), api_key=self._api_key)

    def replay(self, **params: "Param") -> dict[str, Any]:
        from taxbreak_vllm.cli.client import read

        return read(self._url, "whatif", params=_given(params), api_key=self._api_key, wait_s=_REPLAY_S)

    def capture(self, report: Callable[[int, int], None], **wish: Any) -> tuple[dict[str, Any], str]:  # noqa: ANN401
        from taxbreak_vllm.cli.client import capture_steps

        captured = capture_steps(self._url, api_key=self._api_key, report=report, **wish)
        advice = {} if captured.advice is None else {"advice": captured.advice.to_builtins()}
        return captured.breakdown.to_builtins() | advice, captured.gap


def _given(params: "Mapping[str, Param]") -> "Params":
    return {name: value for name, value in params.items() if value is not None}


def _serve(server: "MCPServer[Any]", host: str, port: int, api_key: str | None) -> None:
    import uvicorn
    from pydantic import SecretStr

    from taxbreak_vllm.service.app import listen
    from taxbreak_vllm.service.http.keys import guarded

    app = guarded(
        server.streamable_http_app(host=host, streamable_http_path=_PATH),
        None if api_key is None else SecretStr(api_key),
    )
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listen(host, port, path=_PATH)])
