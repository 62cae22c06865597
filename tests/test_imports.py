"""The architecture's one direction of imports, read from the source, and the two imports that must need no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import taxbreak_vllm

PACKAGE = Path(taxbreak_vllm.__file__).parent

# Each room may import itself and what stands before it; rooms of one line do not know each other.
ORDER = (
    {"errors", "model"},
    {"settings", "machine", "layout", "database"},
    {"spool", "trace"},
    {"baselines"},
    {"taxes"},
    {"insight", "replay"},
    {"page"},
    {"service", "report", "report_insight", "report_replay", "client", "export"},
    {"demo"},
    {"cli"},
)
ALSO_TAXES = {
    "tiers",
    "paper",
    "decompose",
    "summary",
    "figures",
    "totals",
    "streaming",
    "analysis",
    "recording",
}  # taxes.py in several files
SERVING_MAY = {"serving", "model", "settings", "spool", "layout", "machine", "errors"}
OUTSIDE = {"vllm": {"serving"}, "torch": {"serving", "replay"}}


class Import(NamedTuple):
    importer: str
    imported: str
    is_lazy: bool

    @property
    def room(self) -> str:
        return _room(self.importer)

    @property
    def target(self) -> str:
        return _room(self.imported)


def _room(module: str) -> str:
    name = module.removeprefix("taxbreak_vllm.").partition(".")[0]
    return "taxes" if name in ALSO_TAXES else name


def _imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        importer = ".".join(("taxbreak_vllm", *path.relative_to(PACKAGE).with_suffix("").parts))
        if importer == "taxbreak_vllm.__init__":
            continue  # the map of public names; lazy by construction, see the last tests
        tree = ast.parse(path.read_text())
        lazy = {
            inner
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(outer)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{importer}: imports are absolute"
                names = (
                    [f"{node.module}.{n.name}" for n in node.names] if node.module == "taxbreak_vllm" else [node.module]
                )
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            yield from (Import(importer, name, node in lazy) for name in names)


IMPORTS = tuple(_imports())
OURS = tuple(found for found in IMPORTS if found.imported.startswith("taxbreak_vllm."))


def test_the_model_imports_nothing_of_ours():
    assert [found for found in OURS if found.room == "model"] == []


def test_imports_point_leftwards():
    place = {room: index for index, rooms in enumerate(ORDER) for room in rooms}
    assert {found.room for found in OURS} - {"serving"} <= set(place), "give the new module its place in ORDER"

    assert [
        found
        for found in OURS
        if "serving" not in (found.room, found.target)
        and found.room != found.target
        and place[found.target] >= place[found.room]
    ] == []


def test_in_the_service_everything_reads_the_results_and_only_its_two_doors_know_every_room():
    """`app` and `mount` put together what http, metrics and processes are."""
    may = {room: {"results"} for room in ("http", "metrics", "processes")}
    may |= {"results": set(), **{door: {"results", *may} for door in ("app", "mount")}}
    inner = [
        (found.importer, found.imported.split(".")[2])
        for found in OURS
        if found.room == found.target == "service" and found.importer.split(".")[2] != found.imported.split(".")[2]
    ]

    assert [(importer, room) for importer, room in inner if room not in may[importer.split(".")[2]]] == []


def test_serving_stands_beside_and_only_its_plugin_touches_the_service_lazily():
    def is_allowed(found: Import) -> bool:
        mounts = found.importer == "taxbreak_vllm.serving.plugin" and found.target == "service" and found.is_lazy
        return found.target in SERVING_MAY or mounts

    assert [found for found in OURS if found.room == "serving" and not is_allowed(found)] == []
    assert [found for found in OURS if found.target == "serving" and found.room != "serving"] == []


@pytest.mark.parametrize("package", OUTSIDE)
def test_what_only_a_serving_process_has_is_imported_only_there(package):
    importers = {found.room for found in IMPORTS if found.imported.partition(".")[0] == package}

    assert importers <= OUTSIDE[package]


@pytest.mark.parametrize("room", ["serving", "trace"])
def test_pandas_stays_out_of_the_worker_and_of_the_trace(room):
    assert [found for found in IMPORTS if found.room == room and found.imported.startswith("pandas")] == []


@pytest.mark.parametrize("module", ["taxbreak_vllm.trace", "taxbreak_vllm.analysis", "taxbreak_vllm.cli"])
def test_analysis_imports_where_torch_and_vllm_cannot_be(module):
    script = f"import sys; sys.modules['torch'] = sys.modules['vllm'] = None; import {module}"

    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_package_itself_loads_none_of_its_heavy_parts():
    heavy = {"pandas", "numpy", "torch", "vllm", "fastapi", "rich"}
    script = f"import sys, taxbreak_vllm; print(*({heavy} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True)

    assert loaded.stdout.split() == []
