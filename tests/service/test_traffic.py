"""What a server keeps of its requests and steps leaves a sidecar as files, as far as they are written; a command reads
them as it reads a spool.
"""

import json
import os

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from taxbreak_vllm.cli.client import CaptureError, fetch_traffic
from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.traffic.log import Log, read_log
from taxbreak_vllm.traffic.rows import Added, Setup, Updated

LONG = 20_000  # lines, of which gzip makes several pieces


def setup(source="engine-0"):
    return Setup(server_id="vllm-a", source=source, vllm="0.0.0", config={"scheduler_config": {"max_num_seqs": 8}})


def rows(num):
    return [Added(n, n, n, n * 7919 % 10007, 16, 0, 0, True, [], [n * 104729 % 2**60]) for n in range(num)]


@pytest.fixture
def keep(spool):
    """Keep rows of a server's source."""

    logs = {}

    def keep(*lines, server_id="vllm-a", source="engine-0"):
        spool.make()
        folder = spool.make_traffic_dir(server_id)
        log = logs.setdefault((server_id, source), Log(folder, setup(source), max_bytes=2**24))
        log.append(lines)
        return folder

    return keep


@pytest.fixture
def get(settings, spool):
    spool.make()
    app = FastAPI()
    app.include_router(create_router(settings))
    return TestClient(app, base_url="http://test/v1/taxbreak/").get


def test_a_sidecar_hands_out_what_was_kept_and_a_copy_reads_as_the_spool_does(keep, start_sidecar, tmp_path):
    folder = keep(*rows(LONG))
    keep(Updated(1), source="api-0")

    (tmp_path / "copy").mkdir()
    fetch_traffic(start_sidecar(), tmp_path / "copy")

    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        *("api-0-00000000.jsonl.gz", "engine-0-00000000.jsonl.gz")
    ]
    assert read_log(tmp_path / "copy", "engine-0") == read_log(folder, "engine-0")
    assert len(read_log(tmp_path / "copy", "engine-0")[1]) == LONG


def test_of_several_servers_the_newest_is_meant_unless_one_is_named(keep, get):
    old, new = keep(Updated(1), server_id="vllm-a"), keep(Updated(1), server_id="vllm-b")
    os.utime(old, (1, 1))
    os.utime(new, (2, 2))

    assert get("traffic").json()["server_id"] == "vllm-b"
    assert get("traffic", params={"server_id": "vllm-a"}).json()["server_id"] == "vllm-a"
    refused = get("traffic", params={"server_id": "vllm-c"})
    assert (refused.status_code, refused.json()["servers"]) == (404, ["vllm-a", "vllm-b"])


def test_nothing_but_traffic_leaves_by_these_routes(keep, spool, get):
    keep(Updated(1))
    (spool.root / "vllm-a" / "secret").write_text("secret")
    (spool.root / "vllm-a" / "traffic" / "secret.jsonl.gz").symlink_to(spool.root / "vllm-a" / "secret")
    (spool.root / "vllm-a" / "traffic" / "engine-0-00000001.jsonl.gz").symlink_to(spool.root / "vllm-a" / "secret")

    for name in (
        "secret",
        "..%2Fsecret",
        "secret.jsonl.gz",
        "engine-0-00000001.jsonl.gz",
        "engine-0-00000009.jsonl.gz",
    ):
        assert get(f"traffic/vllm-a/{name}").status_code == 404
    assert get("traffic/..%2Fvllm-a/engine-0-00000000.jsonl.gz").status_code == 404


def test_a_file_that_grows_is_sent_as_far_as_it_was(keep, get):
    keep(*rows(LONG))
    listed = get("traffic").json()["files"]
    keep(*rows(10))

    sent = get(f"traffic/vllm-a/{listed[0]['name']}")

    assert len(sent.content) == int(sent.headers["content-length"]) > listed[0]["bytes"]


def test_a_spool_without_traffic_says_what_keeps_it(get):
    assert get("traffic").status_code == 404
    assert "VLLM_PLUGINS=taxbreak" in get("traffic").json()["detail"]


def test_a_command_takes_the_address_in_place_of_a_spool(keep, start_sidecar, taxbreak):
    keep(*rows(10))
    url = start_sidecar()

    done = taxbreak("workload", "predict", url, "--set", "max_num_sequences=2")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "--set max_num_sequences: no field of vLLM 0.0.0's scheduler_config" in done.stderr

    done = taxbreak("workload", "check", url, "--server-id", "vllm-z")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no server of this name has kept its traffic here" in done.stderr


def test_an_address_where_nobody_answers_is_said_in_a_line(taxbreak, tmp_path):
    done = taxbreak("workload", "fit", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "cannot be reached" in done.stderr

    done = taxbreak("workload", "fit", tmp_path, "--server-id", "a")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "SPOOL/SERVER" in done.stderr


def test_a_server_that_names_a_file_elsewhere_is_not_believed(httpx_server, tmp_path):
    url = httpx_server(json.dumps({"server_id": "a", "files": [{"name": "../../x", "bytes": 1}]}))

    with pytest.raises(CaptureError, match="no answer of this version"):
        fetch_traffic(url, tmp_path)


@pytest.fixture
def httpx_server():
    """A server that answers everything alike."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    servers = []

    def start(body):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_args):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
