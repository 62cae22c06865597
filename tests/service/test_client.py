"""`taxbreak capture` and `taxbreak control` against a real sidecar, with a spool filled as workers would."""

import http.server
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
from live_states import engine_state

from taxbreak_vllm.cli.client import CaptureError, capture_steps, control_server
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.errors import SettingsError


@pytest.fixture
def ask(taxbreak, spool, make_state):
    """Start the command line, in a thread of its own; another thread of the test is the server it asks."""
    spool.put_state(make_state(updated_unix_ns=time.time_ns() + 3600 * 10**9))
    with ThreadPoolExecutor(1) as thread:
        yield partial(thread.submit, taxbreak)


@pytest.fixture
def record(spool, put, reference, until):
    """Answer the standing request with steps: of these, True ones can be analyzed."""
    good = reference.to_json([reference.op("aten::mm", 0, 100), reference.op("aten::add", 200, 300)]).encode()

    def record(steps):
        request = until(lambda: spool.read_request("vllm-a"))
        for number, is_good in enumerate(steps):
            put(f"{request.capture_id}-{number}", capture_id=request.capture_id, trace=good if is_good else b"junk")

    return record


@pytest.mark.parametrize(
    ("steps", "code", "num_analyzed", "said"),
    [
        ((True, True), 0, 2, None),
        ((True, False), 0, 1, "1 of 2 steps could not be analyzed: analysis_failed: TraceFormatError: "),
        ((False, False), 1, 0, "2 of 2 steps could not be analyzed: analysis_failed: TraceFormatError: "),
        ((True,), 1, 1, "1 of 2 steps came in time (expired)"),
        ((), 1, 0, "0 of 2 steps came in time (expired)"),
    ],
)
def test_a_capture_prints_what_came_and_says_what_is_missing(
    start_sidecar, ask, record, results, until, steps, code, num_analyzed, said
):
    asked = ask("capture", "--url", start_sidecar(), "--steps", 2, "--timeout-s", 60, "--json")
    record(steps)
    if said and "expired" in said:
        until(lambda: [row.analyzed for row in results.captures()] == [len(steps)])
        results._db.execute("UPDATE captures SET expires_unix_ns = 0")  # its time is over
    done = asked.result(timeout=90)

    assert done.returncode == code, done.stderr
    assert len(json.loads(done.stdout or '{"steps": []}')["steps"]) == num_analyzed
    assert done.stderr.count("\n") == (said is not None)
    assert (said or "") in done.stderr


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_a_capture_prints_what_the_servers_iterations_went_to(start_sidecar, ask, record, spool, flags):
    state = engine_state(exposed={EnginePart.SCHEDULE: 3}, between={Between.IPC_DISPATCH: 1}, num_left_out=9000)
    for server_id in ("vllm-a", "vllm-other"):
        spool.put_engine_state(replace(state, server_id=server_id, updated_unix_ns=time.time_ns() + 3600 * 10**9))

    asked = ask("capture", "--url", start_sidecar(), "--steps", 1, *flags)
    record((True,))
    said = asked.result(timeout=90).stdout

    if flags:
        (second,) = json.loads(said)["device_seconds"]
        assert second["parts_ns"]["schedule"] == 3 * 10**9
        assert sum(second["parts_ns"].values()) == 10 * 10**9
    else:
        title = "where the device's second went: engine 0, 1,000 of 10,000 iterations"
        assert said.count("where the device's second went") == said.count(title) == 1
        (row,) = (line for line in said.partition(title)[2].splitlines() if "engine: schedule" in line)
        assert "3.00 ms" in row
        assert "30" in row


def test_advice_is_what_the_server_says_as_json_and_as_text(start_sidecar, ask):
    url = start_sidecar()
    tree, text = (ask("advice", "--url", url, *flag).result(timeout=60) for flag in (("--json",), ()))

    assert json.loads(tree.stdout)["reasons"] == ["nothing was recorded yet"]
    assert (text.stdout, text.stderr) == ("advice: withheld\n   nothing was recorded yet\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("capture", "--steps", "300"), "steps: Input should be less than or equal to 256"),
        (("capture", "--server-id", "../x"), "server_id: String should match"),
        (("control", "--disable", "--server-id", "../x"), "server_id: String should match"),
    ],
)
def test_what_the_api_does_not_take_is_said_in_its_words_with_exit_2(start_sidecar, ask, words, said):
    done = ask(*words, "--url", start_sidecar()).result(timeout=60)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("speak", [lambda url: capture_steps(url, steps=1), control_server], ids=["capture", "control"])
@pytest.mark.parametrize("body", [b"{}", b"[1]", b"hello", b"\xff"])
def test_a_server_of_another_kind_is_told_from_ours(speak, body):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(CaptureError, match="no answer of this version of taxbreak"):
            speak(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.parametrize(
    "url", ["", "foo", "//x", "http://", "ftp://x", "http://[::1", "http://a\001b", "http://a..b", "http://xn--a"]
)
def test_what_is_no_url_is_a_wrong_setting(url):
    with pytest.raises(SettingsError, match="not the URL of a server"):
        control_server(url)


@pytest.mark.parametrize("key", ["", "klü", "a\nb"])
def test_a_key_that_fits_no_header_is_a_wrong_setting(key):
    with pytest.raises(SettingsError, match="TAXBREAK_API_KEY: a key is"):
        control_server("http://127.0.0.1:9", api_key=key)


@pytest.mark.parametrize("name", ["TAXBREAK_API_KEY", "TAXBREAK_READ_KEY"])
def test_advice_is_asked_for_with_the_key_that_a_sidecar_has_in_its_environment(
    start_sidecar, taxbreak, monkeypatch, name
):
    url = start_sidecar(**{name.removeprefix("TAXBREAK_").lower(): "of-the-pod"})
    refused = taxbreak("advice", "--url", url)
    monkeypatch.setenv(name, "of-the-pod")
    done = taxbreak("advice", "--url", url)

    assert refused.returncode == 1
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("advice: ")
