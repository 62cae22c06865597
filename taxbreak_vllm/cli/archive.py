"""The command that copies a spool to an archive once."""

from pathlib import Path
from typing import Annotated

import typer

from taxbreak_vllm.cli.options import Json
from taxbreak_vllm.cli.printing import print_json
from taxbreak_vllm.output.text.printed import print_text


def archive(
    spool: Annotated[Path, typer.Argument(help="a spool: the folder that workers write to")],
    url: Annotated[str, typer.Argument(help="s3://BUCKET/PATH, gs://…, az://… or file:///FOLDER")],
    *,
    bytes_per_second: Annotated[int | None, typer.Option(min=2**12, help="most that is sent a second (bytes)")] = None,
    json: Json = False,
) -> None:
    """Copy what a spool holds to an archive, each capture once; credentials come from the environment."""
    from taxbreak_vllm.output.text.archive import archive_lines, copying_bar
    from taxbreak_vllm.service.processes.archiver import archive_once
    from taxbreak_vllm.settings import load_settings

    settings = load_settings(spool=spool, archive_bytes_per_second=bytes_per_second)
    with copying_bar() as report:
        copied = archive_once(settings, url, report=report)
    if json:
        from msgspec.json import encode

        print_json(encode(copied))
    else:
        print_text(*archive_lines(copied))
    if copied.reason:
        raise typer.Exit(1)
