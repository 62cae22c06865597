"""What lies on disk is its owner's alone and holds no prompt; no route opens without the key or leaves the spool.

A server with the routes mounted, its engine and its worker one process as on one GPU, and a sidecar, both with a key of
ours, run under the most permissive umask there is.
"""

import gzip
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import httpx
import pytest
from rig.varied_client import ask_all

from taxbreak_vllm.demo.servers import ONE_PROCESS, RunningServer, start_sidecar, start_vllm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

KEY = "a-key-of-ours"
READ_KEY = "another-that-reads"
NUM_VARIED = 40
CANARY = "xylophone quixotic zeppelin"
SECRET = "what lies beside the spool"
OUTWARD = (
    "..",
    "../secret",
    "..%2fsecret",
    "..%2f..%2fsecret",
    "%2e%2e%2fsecret",
    "..%252fsecret",
    "..%5csecret",
    "%2fetc%2fpasswd",
    "%00",
    "secret%00.gz",
    ".analyzer.lock",
    "results.sqlite3",
    "a" * 5000,
    "%F0%9F%92%A5",
)


@dataclass
class Guarded:
    """A server and a sidecar that ask for a key, on one spool."""

    vllm: RunningServer
    sidecar: RunningServer
    spool: Path
    ids: list[str]  # of answers

    @property
    def both(self):
        return (self.vllm.url, self.sidecar.url)


def _with_key(key=KEY):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def client():
    """One for all requests: to make one takes longer than to ask."""
    with httpx.Client(timeout=30.0) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(processes, tiny_llama, sample_often):
    from openai import OpenAI  # takes long, and every process collects this file

    spool = processes.folder / "spool"
    (processes.folder / "secret").write_text(SECRET)
    keys = {"TAXBREAK_API_KEY": KEY, "TAXBREAK_READ_KEY": READ_KEY}
    env = sample_often | keys | {"TAXBREAK_SPOOL": str(spool), "VLLM_PLUGINS": "taxbreak"}
    before = os.umask(0)
    try:
        vllm = start_vllm(processes, tiny_llama, env=env, flags=ONE_PROCESS)
        sidecar = start_sidecar(processes, spool, env=keys)
    finally:
        os.umask(before)
    guarded = Guarded(vllm.wait(), sidecar.wait(), spool, ids=[])
    with OpenAI(base_url=f"{vllm.url}/v1", api_key="none", timeout=120.0) as client:

        def ask(num_tokens=24):
            answer = client.completions.create(
                model="tiny-llama", prompt=CANARY, max_tokens=num_tokens, extra_body={"ignore_eos": True}
            )
            guarded.ids.append(answer.id)

        ask()
        url = f"{vllm.url}/v1/taxbreak/captures"
        asked = httpx.post(url, json={"steps": 4, "stacks": True}, headers=_with_key(), timeout=30.0).raise_for_status()

        def is_done():
            ask()
            state = httpx.get(f"{url}/{asked.json()['id']}", headers=_with_key(), timeout=30.0).raise_for_status()
            return state.json()["status"] == "done"

        vllm.process.wait_until(is_done, "done with a capture", timeout_s=300)
    guarded.ids += ask_all(vllm.url, "tiny-llama", num=NUM_VARIED)
    return guarded


def test_everything_in_the_spool_is_its_owners_alone(guarded):
    found = [guarded.spool, *guarded.spool.rglob("*")]
    modes = {path: path.stat().st_mode & 0o777 for path in found if path.exists()}

    assert {path.name for path in found} >= {"results.sqlite3", "state.json", "step.json", "trace.json.gz"}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items()), modes


def _unpacked(path):
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        assert re.search("sqlite3-(wal|shm)$", path.name)  # of a database that was closed meanwhile
        return b""
    return gzip.decompress(data) if path.suffix == ".gz" else data


def test_what_the_server_keeps_of_its_traffic_is_batched_alike_again(guarded, batched_again):
    (engine,) = batched_again(guarded.vllm, guarded.spool, len(guarded.ids))

    assert engine.is_identical, engine
    assert engine.num_steps > 100
    assert engine.num_hit_tokens > 0


def test_nothing_of_a_prompt_of_its_tokens_or_of_a_requests_name_is_stored(guarded, tiny_llama):
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tiny_llama / "tokenizer.json")).encode(CANARY).ids
    words = [word.encode() for word in CANARY.split()]
    tokens = re.compile(rb"[,\s]+".join(str(number).encode() for number in ids[:6]))

    files = [path for path in guarded.spool.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".gz" for path in files) >= 4
    assert {path.name[:4] for path in files if path.parent.name == "traffic"} == {"engi", "api-"}
    names = re.compile("|".join(name.rpartition("-")[2] for name in guarded.ids).encode())
    for path in files:
        data = _unpacked(path)
        assert not any(word in data for word in words), path
        assert not tokens.search(data), path
        assert not names.search(data), path
    with closing(sqlite3.connect(guarded.spool / "results.sqlite3")) as db:
        assert not any(word.decode() in line for line in db.iterdump() for word in words)


def _routes(client, url):
    """Yield method and path of all our routes, from what the server says of itself."""
    paths = client.get(f"{url}/openapi.json").raise_for_status().json()["paths"]
    return [(method.upper(), path) for path, ways in paths.items() if "/taxbreak/" in path for method in ways]


def test_every_route_asks_for_the_key_on_both_servers_which_have_the_same(guarded, client):
    by_server = [_routes(client, url) for url in guarded.both]
    assert sorted(by_server[0]) == sorted(by_server[1])
    assert len(by_server[0]) >= 9
    for url, routes in zip(guarded.both, by_server, strict=True):
        for method, path in routes:
            there = url + re.sub(r"{\w+}", "some-id", path)
            for headers in ({}, _with_key("another"), {"Authorization": "Bearer"}, {"Authorization": KEY}):
                assert client.request(method, there, headers=headers).status_code == 401, (method, there)
            assert client.request(method, there, headers=_with_key()).status_code not in (401, 403), (method, there)
            is_refused = client.request(method, there, headers=_with_key(READ_KEY)).status_code == 403
            assert is_refused == (method != "GET"), (method, there)


def test_the_page_is_a_form_until_the_key_is_given(guarded, client):
    own = {"Origin": guarded.sidecar.url}
    assert "data-article" not in client.get(guarded.sidecar.url).text
    assert client.post(guarded.sidecar.url, data={"key": "wrong"}, headers=own).status_code == 403

    with httpx.Client(base_url=guarded.sidecar.url, follow_redirects=True, timeout=30.0) as browser:
        assert "data-article" in browser.post("/", data={"key": KEY}, headers=own).text
        assert browser.get("/v1/taxbreak/status").status_code == 200
        assert browser.post("/v1/taxbreak/captures", json={}).status_code == 403  # from no page


def test_no_id_in_a_request_leads_out_of_the_spool(guarded, client):
    before = set(guarded.spool.parent.iterdir())
    for url in guarded.both:
        for (method, path), outward in product(_routes(client, url), OUTWARD):
            if "{" not in path:
                continue
            there = url + re.sub(r"{\w+}", lambda _, text=outward: text, path)
            response = client.request(method, there, headers=_with_key())
            assert 400 <= response.status_code < 500, (method, there, response.status_code)
            assert SECRET not in response.text
            assert "root:" not in response.text
        for outward in ("../..", "/etc", "..", "a/b", "a" * 5000):
            body = {"steps": 1, "server_id": outward}
            response = client.post(f"{url}/v1/taxbreak/captures", json=body, headers=_with_key())
            assert response.status_code in (404, 422), (outward, response.status_code)
            query = {"server_id": outward}
            response = client.get(f"{url}/v1/taxbreak/breakdown", params=query, headers=_with_key())
            assert response.status_code < 500
            assert SECRET not in response.text
    assert set(guarded.spool.parent.iterdir()) == before


def test_vllms_own_metrics_hold_ours_and_ask_for_no_key_as_they_never_did(guarded, scrape):
    guarded.vllm.process.wait_until(lambda: "taxbreak_hdbi" in scrape(guarded.vllm), "sampled", timeout_s=300)

    found = scrape(guarded.vllm)

    assert all(0 < value < 1 for _, value in found["taxbreak_hdbi"])
    assert sum(value for _, value in found["taxbreak_sampled_steps_total"]) > 0
    assert sum(value for _, value in found["vllm:generation_tokens_total"]) > 0


def test_answers_are_byte_for_byte_those_of_a_server_without_the_plugin(guarded, answers, plain_answers):
    assert answers(guarded.vllm) == plain_answers


def test_the_sidecar_listens_on_loopback_unless_told_otherwise(tmp_path):
    command = [sys.executable, "-m", "taxbreak_vllm.cli", "serve", "--spool", str(tmp_path / "spool"), "--port", "0"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("TAXBREAK_")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as sidecar:
        try:
            address = re.search(r"http://(.*):(\d+)", sidecar.stderr.readline())
            listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        finally:
            sidecar.terminate()

    assert address.group(1) == "127.0.0.1"
    port = f":{int(address.group(2)):04X}"
    assert [where for where in listening if where.endswith(port)] == [f"0100007F{port}"]
