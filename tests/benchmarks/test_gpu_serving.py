"""The tables of the serving benchmark, on figures that were put there."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the benchmark needs torch")

import gpu_serving
from gpu_book import Book


def figures(tpot_ns):
    return {"tokens_per_s": 1e9 / tpot_ns, "tpot_ns": tpot_ns, "itl_ns": tpot_ns, "itl_p99_ns": 9, "itl_max_ns": 9}


def test_a_round_compares_each_server_with_the_one_without_the_plugin(tmp_path, capsys):
    book = Book(tmp_path / "found.json", seconds=1)
    for number, (off, on) in enumerate(((100, 102), (200, 206), (400, 400))):
        by_load = {load.name: {"off": figures(off), "on": figures(on)} for load in gpu_serving._COST_LOADS}
        book.note("cost", f"round {number}", by_load)

    gpu_serving._show_cost(book, [f"round {n}" for n in range(3)], ["off", "on"])

    on = book.stages["cost"]["summary"][1]
    assert (on["plugin"], on["rounds"], on["tpot / off"], on["tpot range"]) == ("on", 3, 1.02, "1.000-1.030")
    assert "cost in pairs" in capsys.readouterr().out


def test_a_server_that_died_in_a_round_is_left_out_of_it(tmp_path):
    book = Book(tmp_path / "found.json", seconds=1)
    by_load = {load.name: {"off": figures(100), "on": {"tokens": 0, "failed": 3}} for load in gpu_serving._COST_LOADS}
    book.note("cost", "round 0", by_load)

    gpu_serving._show_cost(book, ["round 0"], ["off", "on", "never up"])

    assert [row["rounds"] for row in book.stages["cost"]["summary"]] == [1, 0, 0] * 2


def test_what_graphs_saved_stands_beside_what_was_exposed(tmp_path, capsys):
    book = Book(tmp_path / "found.json", seconds=1)
    shown = dict.fromkeys(gpu_serving.MODE_COLUMNS)
    for mode, plain_ns, exposed_ns, step in (("eager", 9000, 6000, "decode none"), ("full", 4000, 500, "decode full")):
        values = shown | {"plain_ns": plain_ns, "exposed_ns": exposed_ns}
        book.note("modes", f"llama {mode}", {"loads": {"decode": {"phases": {step: values}}}})

    gpu_serving._show_modes(book, "llama", ["eager", "full"], None)

    (saving,) = book.stages["modes"]["llama savings"]
    assert saving["measured saving_ns"] == 5000
    assert saving["exposed less_ns"] == 5500
    assert saving["all exposed of eager_ns"] == 6000
    assert "saved a step" in capsys.readouterr().out


def test_what_was_predicted_of_one_graph_is_held_against_full_graphs_alone():
    eager = {"as one graph": {"plain_ns": 9000, "predicted_ns": 4200, "low_ns": 3900, "high_ns": 4500}}

    assert gpu_serving._foretold(eager, {"plain_ns": 4000}, is_full=True)["within"] is True
    assert gpu_serving._foretold(eager, {"plain_ns": 4600}, is_full=True)["within"] is False
    assert gpu_serving._foretold(eager, {"plain_ns": 4000}, is_full=False)["within"] is None
    assert gpu_serving._foretold({"as one graph": {"refused": ["no"]}}, {"plain_ns": 1}, is_full=True)["within"] is None


def test_it_imports_nothing_that_a_gpu_host_with_vllm_may_lack():
    root = Path(__file__).resolve().parents[2]
    lacking = ("httpx", "pydantic_settings", "typer", "rich", "psutil", "pyarrow", "openai")
    code = f"import sys; sys.path[:0] = {[str(root), str(root / 'benchmarks')]}\n"
    code += "".join(f"sys.modules[{name!r}] = None\n" for name in lacking) + "import gpu_serving, gpu_day"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stderr
