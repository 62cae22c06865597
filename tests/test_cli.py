"""The command line as a user meets it: one line and exit 2 for bad input, one JSON object for --json."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVING = ROOT / "tests" / "data" / "serving.json"
TRACES = sorted((ROOT.parent / "shared" / "traces").glob("*.json.gz"))
needs_traces = pytest.mark.skipif(not TRACES, reason="the real traces are not beside this checkout (../shared/traces)")


def taxbreak(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taxbreak_vllm.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = gzip.compress(SERVING.read_bytes())
    contents: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "empty file"),
        "text": (b"hello there\n", "not JSON"),
        "not a trace": (b'{"a": [1, 2]}', "without a traceEvents list"),
        "broken": (b'{"traceEvents": [{"ph": X}]}', "not valid JSON"),
        "no events": (b'{"traceEvents": []}', "empty trace"),
        "truncated gzip": (whole[: len(whole) // 2], "truncated"),
        "damaged gzip": (whole[:100] + b"\0\0\0\0" + whole[104:], "damaged"),
        "nothing to decompose": (
            b'{"traceEvents": [{"ph": "X", "cat": "user_annotation", "name": "a", "ts": 1, "dur": 1}]}',
            "neither device activities nor ops",
        ),
    }
    files = {"missing": (folder / "missing.json", "No such file"), "a folder": (folder, "Is a directory")}
    for name, (content, reason) in contents.items():
        path = folder / f"{name.replace(' ', '-')}.json"
        path.write_bytes(content)
        files[name] = (path, reason)
    return files


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "a folder",
        "empty",
        "text",
        "not a trace",
        "broken",
        "no events",
        "truncated gzip",
        "damaged gzip",
        "nothing to decompose",
    ],
)
def test_bad_input_is_one_line_with_file_and_reason_and_exit_2(tmp_path, name):
    path, reason = bad_files(tmp_path)[name]

    done = taxbreak("analyze", path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    assert reason in done.stderr


def test_json_is_one_object_and_nothing_else():
    done = taxbreak("analyze", "--json", SERVING)

    tree = json.loads(done.stdout)
    assert done.stderr == ""
    assert tree["schema"] == "taxbreak.breakdown/1"
    assert "name" not in tree["total"]
    assert {step["phase"] for step in tree["steps"]} >= {"prefill", "decode"}


def test_several_files_are_one_json_object_too():
    done = taxbreak("analyze", "--json", SERVING, SERVING)

    assert len(json.loads(done.stdout)["breakdowns"]) == 2


def test_steps_are_chosen_by_phase_and_by_number():
    decode = json.loads(taxbreak("analyze", "--json", "--phase", "decode", SERVING).stdout)
    first = json.loads(taxbreak("analyze", "--json", "--step", "0", SERVING).stdout)
    none = taxbreak("analyze", "--phase", "verify", SERVING)

    assert {step["phase"] for step in decode["steps"]} == {"decode"}
    assert len(first["steps"]) == 1
    assert (none.returncode, none.stderr.count("\n")) == (2, 1)


def test_a_floor_replaces_the_estimate_and_is_named_so():
    tree = json.loads(taxbreak("analyze", "--json", "--floor-us", "4.5", SERVING).stdout)

    assert tree["total"]["taxes"]["delta_kt_ns"] == 4500 * tree["coverage"]["kernel_launches"]
    assert tree["coverage"]["replay"] == {"floor": 1.0}


def test_the_exports_are_written_beside_the_table(tmp_path):
    done = taxbreak("analyze", SERVING, "--html", tmp_path / "a.html", "--speedscope", tmp_path / "a.json")

    assert done.returncode == 0, done.stderr
    assert "HDBI" in done.stdout
    assert "<html" in (tmp_path / "a.html").read_text()
    assert json.loads((tmp_path / "a.json").read_text())["profiles"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("analyze",),
        ("analyze", "--floor-us", "-1", "x"),
        ("control", "--sample-every", "1"),
        ("control", "--budget", "2"),
        ("nonsense",),
    ],
)
def test_bad_usage_is_exit_2(arguments):
    assert taxbreak(*arguments).returncode == 2


def test_a_wrong_setting_stops_the_sidecar_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "taxbreak_vllm.cli", "serve", "--spool", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "TAXBREAK_NONSENSE": "1"},
    )

    assert done.returncode == 2
    assert "TAXBREAK_NONSENSE" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("capture", "--steps", "1"), ("control",), ("control", "--disable")])
def test_a_server_that_cannot_be_reached_is_one_line_and_exit_1(command):
    done = taxbreak(*command, "--url", "http://127.0.0.1:9")

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "127.0.0.1:9" in done.stderr


@needs_traces
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
def test_every_real_trace_gives_a_table(path):
    done = taxbreak("analyze", path)

    assert done.returncode == 0, done.stderr
    assert "ΔFT" in done.stdout
    assert done.stderr == ""
