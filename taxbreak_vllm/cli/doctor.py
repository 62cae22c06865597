"""The command that examines a host: doctor."""

from pathlib import Path
from typing import Annotated, Any

import typer

from taxbreak_vllm.cli.options import Json, ReadKey
from taxbreak_vllm.cli.printing import print_json
from taxbreak_vllm.model import defaults
from taxbreak_vllm.output.text.printed import print_text


def doctor(
    *,
    spool: Annotated[Path | None, typer.Option(help="folder the workers write to; by default TAXBREAK_SPOOL")] = None,
    url: Annotated[
        str | None,
        typer.Option(help=f"a sidecar, or a vLLM server that mounts /v1/taxbreak; else {defaults.URL} is tried"),
    ] = None,
    api_key: ReadKey = None,
    json: Json = False,
) -> None:
    """Check this host for what stops or falsifies measuring, with a remedy each; exit 1 where something stops it."""
    import time

    from taxbreak_vllm.cli.client import Unreachable, read
    from taxbreak_vllm.doctor.examine import examine
    from taxbreak_vllm.doctor.finding import Grade

    where = url or defaults.URL

    def ask() -> dict[str, Any] | None:
        try:
            return read(where, "status", api_key=api_key)
        except Unreachable:
            if url is None:
                return None
            raise

    findings = []
    for finding in examine(spool=spool, url=where, ask=ask, now_ns=time.time_ns):
        findings.append(finding)
        if not json:
            from taxbreak_vllm.output.text.doctor import finding_lines

            print_text(*finding_lines(finding))
    if json:
        from msgspec.json import encode

        print_json(encode({"schema": "taxbreak.doctor/1", "findings": findings}))
    raise typer.Exit(int(any(finding.grade is Grade.FAIL for finding in findings)))
