"""What a command is given that it cannot use is one line on stderr, and nothing else happens."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread

import pytest

from tests.cli.test_cli import SERVING, bad_files

NOT_HERE = ("cuda:77", 1, "has no cuda:77 here; choose another --device")
NO_DEVICE = ("banana", 2, "--device banana: not a device")


@pytest.mark.skipif(find_spec("torch") is None, reason="floors need torch")
@pytest.mark.parametrize(
    ("command", "device", "status", "reason"),
    [
        pytest.param(("floor",), *NOT_HERE, id="floor, not here"),
        pytest.param(("replay", SERVING), *NO_DEVICE, id="replay, no device"),
        pytest.param(("floor",), *NO_DEVICE, id="floor, no device", marks=pytest.mark.nightly),
        pytest.param(("replay", SERVING), *NOT_HERE, id="replay, not here", marks=pytest.mark.nightly),
    ],
)
def test_a_device_that_is_not_here_is_one_line(taxbreak, tmp_path, command, device, status, reason):
    done = taxbreak(*command, "--device", device, "--baselines", tmp_path / "store.sqlite3")

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done.stderr
    assert reason in done.stderr


@pytest.mark.parametrize("command", ["fusion", "diff"])
@pytest.mark.parametrize("name", ["missing", "a folder", "text", "truncated gzip"])
def test_bad_input_of_other_commands_is_one_line_with_the_file_too(taxbreak, tmp_path, command, name):
    path, reason = bad_files(tmp_path)[name]

    done = taxbreak(command, *((path,) if command == "fusion" else (SERVING, path)))

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert str(path) in done.stderr
    assert reason in done.stderr


@pytest.mark.parametrize("option", ["--html", "--speedscope", "--parquet"])
def test_an_output_of_the_wrong_kind_is_one_line_and_exit_1(taxbreak, tmp_path, option):
    target = tmp_path / "target"
    target.touch() if option == "--parquet" else target.mkdir()

    done = taxbreak("analyze", SERVING, option, target)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert f"{target}: " in done.stderr


@pytest.mark.parametrize("command", [("advice",), ("capture",), ("control", "--json")], ids=lambda words: words[0])
def test_a_server_that_says_something_else_is_one_line_and_exit_1(taxbreak, command, something_else):
    done = taxbreak(*command, "--url", something_else)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert something_else in done.stderr


@pytest.fixture
def something_else():
    """The address of a web server that knows nothing of us."""

    class Hello(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_folder_of_other_things_is_no_spool_and_left_as_it_is(taxbreak, tmp_path):
    (tmp_path / "thesis.txt").write_text("of somebody")
    before = tmp_path.stat()

    done = taxbreak("serve", "--spool", tmp_path, "--port", "0")

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}: holds 'thesis.txt', which is no part of a spool" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path.stat().st_mode, tmp_path.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_no_spool_is_made_of_the_systems_configuration(taxbreak):
    done = taxbreak("serve", "--spool", "/etc", "--port", "0")

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "/etc: " in done.stderr
