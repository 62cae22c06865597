"""The command line as a user meets it: one line and exit 2 for bad input, one JSON object for --json."""

import gzip
import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Baseline, Environment, Outcome, Spread

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "tests" / "data" / "serving.json"


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
    files = {
        "missing": (folder / "missing.json", "No such file"),
        "a folder": (folder, "no capture, as it has no step.json"),
    }
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
def test_bad_input_is_one_line_with_file_and_reason_and_exit_2(taxbreak, tmp_path, name):
    path, reason = bad_files(tmp_path)[name]

    done = taxbreak("analyze", path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    assert reason in done.stderr


@pytest.mark.parametrize(
    "words", [(SERVING,), ("--json", SERVING), (SERVING, "--json"), ("--json", SERVING, SERVING)], ids=str
)
def test_words_that_need_no_parser_print_what_the_parser_would(taxbreak, words):
    parsed = taxbreak("analyze", *words, "--top", "12")

    assert taxbreak("analyze", *words).stdout == parsed.stdout
    assert "HDBI" in parsed.stdout or json.loads(parsed.stdout)


@pytest.mark.parametrize("option", [(), ("--top", "12")], ids=["no parser", "parser"])
def test_the_last_of_an_option_given_twice_counts(taxbreak, tmp_path, option):
    twice = ("--html", tmp_path / "a", "--html", tmp_path / "b")

    done = taxbreak("analyze", *twice, SERVING, "--speedscope", tmp_path / "c", "--parquet", tmp_path / "d", *option)

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--json", "--jsno", SERVING), "No such option"),
        (("--json",), "Missing argument"),
        ((SERVING, "--html"), "requires an argument"),
    ],
)
def test_bad_words_reach_the_parser(taxbreak, words, reason):
    assert reason in taxbreak("analyze", *words).stderr


def test_json_is_one_object_and_nothing_else(taxbreak):
    done = taxbreak("analyze", "--json", SERVING)

    tree = json.loads(done.stdout)
    assert done.stderr == ""
    assert tree["schema"] == "taxbreak.breakdown/1"
    assert "name" not in tree["total"]
    assert {step["phase"] for step in tree["steps"]} >= {"prefill", "decode"}


def test_several_files_are_one_json_object_too(taxbreak):
    done = taxbreak("analyze", "--json", SERVING, SERVING)

    assert len(json.loads(done.stdout)["breakdowns"]) == 2


def test_steps_are_chosen_by_phase_and_by_number(taxbreak):
    decode = json.loads(taxbreak("analyze", "--json", "--phase", "decode", SERVING).stdout)
    first = json.loads(taxbreak("analyze", "--json", "--step", "0", SERVING).stdout)
    none = taxbreak("analyze", "--phase", "verify", SERVING)

    assert {step["phase"] for step in decode["steps"]} == {"decode"}
    assert len(first["steps"]) == 1
    assert (none.returncode, none.stderr.count("\n")) == (2, 1)


def test_a_floor_replaces_the_estimate_and_is_named_so(taxbreak):
    tree = json.loads(taxbreak("analyze", "--json", "--floor-us", "4.5", SERVING).stdout)

    assert tree["total"]["taxes"]["delta_kt_ns"] == 4500 * tree["coverage"]["kernel_launches"]
    assert tree["coverage"]["replay"] == {"floor": 1.0}


def test_the_exports_are_written_beside_the_table(taxbreak, tmp_path):
    done = taxbreak("analyze", SERVING, "--html", tmp_path / "a.html", "--speedscope", tmp_path / "a.json")

    assert done.returncode == 0, done.stderr
    assert "HDBI" in done.stdout
    assert "<html" in (tmp_path / "a.html").read_text()
    assert json.loads((tmp_path / "a.json").read_text())["profiles"]


@pytest.mark.parametrize("option", ["--html", "--speedscope", "--pprof"])
def test_no_export_replaces_the_trace_it_is_made_from(taxbreak, tmp_path, option):
    trace = tmp_path / "trace.json.gz"
    trace.write_bytes(SERVING.read_bytes())

    done = taxbreak("analyze", trace, option, tmp_path / "x" / ".." / trace.name)

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert trace.read_bytes() == SERVING.read_bytes()


@pytest.mark.parametrize("target", ["", "none/page.html"])
def test_an_export_that_cannot_be_written_is_one_line_and_exit_1(tmp_path, target):
    done = subprocess.run(
        [sys.executable, "-m", "taxbreak_vllm.cli", "analyze", str(SERVING), "--html", target],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "cannot write" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_export_replaces_the_other(taxbreak, tmp_path):
    done = taxbreak("analyze", SERVING, "--html", tmp_path / "a", "--speedscope", tmp_path / "a")

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("analyze",),
        ("analyze", "--floor-us", "-1", "x"),
        *(("analyze", str(SERVING), "--floor-us", number) for number in ("inf", "1e300", "nan")),
        *(("analyze", str(SERVING), "--plain-ms", number) for number in ("inf", "1e300")),
        ("replay", str(SERVING), "--memory-gib", "inf"),
        ("capture", "--timeout-s", "inf"),
        ("capture", "--timeout-s", "1e9"),
        ("control", "--timeout-s", "inf"),
        ("control", "--sample-every", "1"),
        ("control", "--budget", "2"),
        ("nonsense",),
    ],
)
def test_bad_usage_is_exit_2(taxbreak, arguments):
    done = taxbreak(*arguments)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", [(), ("--json",), ("--html", "page.html")])
def test_a_name_that_is_not_utf_8_is_one_line_and_exit_2(taxbreak, tmp_path, option):
    path = tmp_path / os.fsdecode(b"bad\xff.json")
    path.write_bytes(SERVING.read_bytes())

    done = taxbreak("analyze", path, *option)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert r"bad\xff.json: not UTF-8" in done.stderr


@pytest.mark.parametrize("option", [(), ("--json",), ("--json", "--top", "1")])
def test_an_output_that_cannot_be_written_is_one_line_and_exit_1(option):
    command = [sys.executable, "-m", "taxbreak_vllm.cli", "analyze", str(SERVING), *option]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, "taxbreak: standard output: No space left on device\n")


@pytest.mark.parametrize(("name", "value"), [("TAXBREAK_NONSENSE", "1"), ("TAXBREAK_API_KEY", "")])
def test_a_wrong_setting_stops_the_sidecar_with_one_line(tmp_path, name, value):
    done = subprocess.run(
        [sys.executable, "-m", "taxbreak_vllm.cli", "serve", "--spool", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", name: value},
    )

    assert done.returncode == 2
    assert name in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--results", ROOT, f"{ROOT}: cannot open the results: "),
        ("--host", "nosuchhost.invalid", "TAXBREAK_HOST=nosuchhost.invalid: "),
        ("--host", "no..host", "TAXBREAK_HOST=no..host: "),
        ("--port", "70000", "TAXBREAK_PORT=70000: "),
        ("--window-s", "99999999999999", "TAXBREAK_WINDOW_S=99999999999999: "),
    ],
)
def test_a_sidecar_that_cannot_be_as_asked_for_says_why_in_one_line_and_exit_2(
    taxbreak, tmp_path, option, value, reason
):
    done = taxbreak("serve", "--spool", tmp_path / "spool", option, value)

    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


@pytest.mark.parametrize("option", [("--url", "http://[::1"), ("--url", "foo"), ("--api-key", "klü")])
@pytest.mark.parametrize("command", ["capture", "control"])
def test_a_server_that_cannot_be_asked_so_is_one_line_and_exit_2(taxbreak, command, option):
    done = taxbreak(command, *option)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


@pytest.mark.parametrize("command", [("capture", "--steps", "1"), ("control",), ("control", "--disable")])
def test_a_server_that_cannot_be_reached_is_one_line_and_exit_1(taxbreak, command):
    done = taxbreak(*command, "--url", "http://127.0.0.1:9")

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "127.0.0.1:9" in done.stderr


def test_every_real_trace_gives_a_table(taxbreak, trace_path):
    done = taxbreak("analyze", trace_path)

    assert done.returncode == 0, done.stderr
    assert "ΔFT" in done.stdout
    assert done.stderr == ""


def test_analyze_ends_with_advice_or_with_the_reason_why_there_is_none(taxbreak):
    open_yet, advised = taxbreak("analyze", SERVING), taxbreak("analyze", SERVING, "--plain-ms", "0.3")

    assert "advice: conditional" in open_yet.stdout
    assert "1. if the plain step is above " in open_yet.stdout
    assert "to settle it: time these steps without a profiler" in open_yet.stdout
    assert "advice: act" in advised.stdout
    assert advised.stdout.count(", an upper bound") == advised.stdout.count("   wrong if: ") > 0


def test_the_json_of_analyze_carries_the_advice_beside_the_breakdown(taxbreak):
    done = json.loads(taxbreak("analyze", SERVING, "--plain-ms", "0.3", "--json").stdout)

    assert done["schema"] == "taxbreak.breakdown/1"
    assert done["advice"]["verdict"] == "act"
    assert {"rule", "component", "phase", "settings", "at_most_ns", "at_most_ratio", "refuted_by"} <= set(
        done["advice"]["advice"][0]
    )


@pytest.fixture
def store(tmp_path):
    """A store with one entry."""
    environment = Environment(device_type="cuda", device_name="H100", torch="2.9", driver="12080")
    entry = Baseline(signature="a", op="aten::mm", outcome=Outcome.MEASURED, dispatch=Spread(1000, 10, 30))
    with Baselines(tmp_path / "store.sqlite3") as store:
        store.put(environment, [entry])
    return tmp_path / "store.sqlite3"


def test_a_store_is_listed_exported_and_taken_in_elsewhere(taxbreak, store, tmp_path):
    listed = json.loads(taxbreak("baselines", "list", "--baselines", store, "--json").stdout)
    exported = json.loads(taxbreak("baselines", "export", tmp_path / "x.jsonl", "--baselines", store, "--json").stdout)
    other = tmp_path / "other.sqlite3"
    taken = json.loads(taxbreak("baselines", "import", tmp_path / "x.jsonl", "--baselines", other, "--json").stdout)

    assert (listed["entries"], exported["entries"], taken["entries"]) == (1, 1, 1)
    assert listed["environments"] == taken["environments"]
    assert listed["environments"][0]["environment"]["device_name"] == "H100"


@pytest.mark.parametrize("name", ["store.sqlite3", "link", "other.sqlite3"])
def test_an_export_replaces_no_store(taxbreak, store, tmp_path, name):
    (tmp_path / "link").symlink_to(store)
    with Baselines(tmp_path / "other.sqlite3"):
        pass

    done = taxbreak("baselines", "export", tmp_path / name, "--baselines", store)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{name}: a database" in done.stderr
    assert json.loads(taxbreak("baselines", "list", "--baselines", store, "--json").stdout)["entries"] == 1


def test_a_store_is_a_table_for_people(taxbreak, store):
    done = taxbreak("baselines", "list", "--baselines", store)

    assert done.returncode == 0
    assert "cuda H100" in done.stdout


def test_baselines_of_another_place_are_not_used_and_the_notes_say_so(taxbreak, store):
    tree = json.loads(taxbreak("analyze", SERVING, "--baselines", store, "--json").stdout)

    assert any("no baselines" in note for note in tree["notes"])


BAD_STORES = {
    "missing": (lambda path: None, "no such file"),
    "text": (lambda path: path.write_text("hello " * 1000), "not a database"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "malformed"),
    "newer": (lambda path: _set_version(path, 9), "another version"),
}


def _set_version(path: Path, version: int) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {version}")
    db.close()


@pytest.mark.parametrize("command", [("analyze", SERVING), ("baselines", "list")], ids=lambda command: command[0])
@pytest.mark.parametrize("what", BAD_STORES)
def test_a_bad_store_is_one_line_with_its_name_and_exit_2(taxbreak, store, tmp_path, what, command):
    spoil, reason = BAD_STORES[what]
    path = tmp_path / "spoiled.sqlite3"
    if what != "missing":
        path.write_bytes(store.read_bytes())
    spoil(path)

    done = taxbreak(*command, "--baselines", path)

    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("baselines", "import", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
        (("baselines", "export"), "takes a file"),
        (("baselines", "list", "file"), "takes no file"),
        (("replay", "nowhere.json"), "nowhere.json: No such file"),
        (("replay", str(ROOT / "docs")), "neither a capture nor a spool"),
    ],
)
def test_bad_input_of_replay_and_baselines_is_one_line_and_exit_2(taxbreak, store, arguments, reason):
    done = taxbreak(*arguments, "--baselines", store)

    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


def test_an_export_cut_short_is_one_line_and_exit_2(taxbreak, store, tmp_path):
    taxbreak("baselines", "export", tmp_path / "x.jsonl", "--baselines", store)
    whole = (tmp_path / "x.jsonl").read_bytes()
    (tmp_path / "x.jsonl").write_bytes(whole[:-20])

    done = taxbreak("baselines", "import", tmp_path / "x.jsonl", "--baselines", store)

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "not an export of baselines" in done.stderr


@pytest.mark.timeout(300)
@pytest.mark.skipif(find_spec("torch") is None, reason="floors need torch")
def test_floors_are_measured_stored_and_told(taxbreak, tmp_path):
    done = taxbreak(
        "floor", "--device", "cpu", "--baselines", tmp_path / "store.sqlite3", "--ceilings-s", "0.5", "--json"
    )

    tree = json.loads(done.stdout)
    kinds = {floor["kind"] for floor in tree["floors"]["floors"]}
    assert done.returncode == 0, done.stderr
    assert (tree["schema"], tree["environment"]["device_type"]) == ("taxbreak.floors/1", "cpu")
    assert kinds == {"dispatch", "aten_dispatch", "profiler_op"}
    with Baselines(tmp_path / "store.sqlite3") as store:
        (environment,) = store.environments()
        assert len(store.floors(environment).floors) == 3
        ceilings = store.ceilings(environment)
    assert ceilings.flops_per_s["fp32"].per_s == tree["ceilings"]["flops_per_s"]["fp32"]["per_s"] > 1e9
    assert [int(size) for size in tree["ceilings"]["bytes_per_s"]] == [2**power for power in range(20, 30)]
    assert tree["ceilings"]["missing"].keys() >= {"fp4", "fp8"}
