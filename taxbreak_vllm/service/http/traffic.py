"""The routes of what servers keep of their requests and steps: which files there are, and each as far as it is written.

A file is streamed from the disk in pieces, in the thread pool: none is held in memory, and no scrape waits for one.
"""

import os
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi import Path as PathOf
from fastapi.responses import StreamingResponse

from taxbreak_vllm.service.http.openapi import answer, errors
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.responses import TrafficFile, TrafficFiles
from taxbreak_vllm.service.http.router import RouteContext, json_response
from taxbreak_vllm.spool.layout import traffic_dirs
from taxbreak_vllm.traffic.files import all_files

_CHUNK_BYTES = 256 * 1024
_NONE = (
    "no server has kept its traffic here: vLLM runs with VLLM_PLUGINS=taxbreak, and TAXBREAK_TRAFFIC_MAX_BYTES is not 0"
)


class GzipStream(StreamingResponse):
    """A gzip file that is sent as it is read."""

    media_type = "application/gzip"


def add_traffic_routes(router: APIRouter, context: RouteContext) -> None:
    """Add `GET traffic` and `GET traffic/{server_id}/{name}`."""

    def folder_of(server_id: str | None) -> Path:
        folders = {Path(folder).parent.name: Path(folder) for folder in traffic_dirs(context.spool.root)}
        with_files = {server: folder for server, folder in folders.items() if all_files(folder)}
        if server_id is not None and server_id not in with_files:
            detail = "no server of this name has kept its traffic here"
            raise Problem(HTTPStatus.NOT_FOUND, detail, servers=sorted(with_files))
        if not with_files:
            raise Problem(HTTPStatus.NOT_FOUND, _NONE)
        newest = max(with_files.values(), key=lambda folder: folder.stat().st_mtime_ns)
        return newest if server_id is None else with_files[server_id]

    @router.get("/traffic", response_model=TrafficFiles, responses=answer(TrafficFiles) | errors(HTTPStatus.NOT_FOUND))
    def traffic(
        server_id: Annotated[str | None, Query(description="the one that wrote last by default")] = None,
    ) -> Response:
        """The files of what a server was asked and what it batched, of each engine and API server the oldest first."""
        folder = folder_of(server_id)
        files = []
        for path in all_files(folder):
            try:
                files.append(TrafficFile(name=path.name, bytes=path.stat().st_size))
            except FileNotFoundError:  # the oldest go
                continue
        return json_response(TrafficFiles(server_id=folder.parent.name, files=files))

    @router.get("/traffic/{server_id}/{name}", response_class=GzipStream, responses=errors(HTTPStatus.NOT_FOUND))
    def traffic_file(
        server_id: Annotated[str, PathOf(examples=["vllm-a"])],
        name: Annotated[str, PathOf(examples=["engine-0-00000000.jsonl.gz"])],
    ) -> Response:
        """One of these files, gzip-compressed lines of JSON, as far as it is written."""
        path = next((path for path in all_files(folder_of(server_id)) if path.name == name), None)
        try:
            descriptor = None if path is None else os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            descriptor = None
        if descriptor is None:
            raise Problem(HTTPStatus.NOT_FOUND, "no such file of this server; the oldest are deleted")
        size = os.fstat(descriptor).st_size
        return GzipStream(_pieces(descriptor, size), headers={"Content-Length": str(size)})


def _pieces(descriptor: int, size: int) -> Iterator[bytes]:
    """Yield as many bytes as there were: more are written meanwhile."""
    with open(descriptor, "rb") as file:
        while size > 0 and (piece := file.read(min(size, _CHUNK_BYTES))):
            size -= len(piece)
            yield piece
