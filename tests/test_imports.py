"""The one direction of imports, as docs/architecture.md tells it, and the imports that must need no torch."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import taxbreak_vllm

PACKAGE = Path(taxbreak_vllm.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
FLOOR = {room: int(floor) for floor, room in re.findall(r"^\| (\d) \| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)}
OUTSIDE = {"vllm": {"serving", "plugin", "workload"}, "torch": {"serving", "replay", "workload"}}


class Import(NamedTuple):
    importer: str
    imported: str

    @property
    def room(self) -> str:
        return self.importer.split(".")[1]

    @property
    def target(self) -> str:
        return self.imported.split(".")[1]


def _imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        importer = ".".join(("taxbreak_vllm", *path.relative_to(PACKAGE).with_suffix("").parts))
        if importer == "taxbreak_vllm.__init__":
            continue  # the map of public names; lazy by construction, see the last tests
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{importer}: imports are absolute"
                at_root = node.module == "taxbreak_vllm"
                names = [f"{node.module}.{n.name}" for n in node.names] if at_root else [str(node.module)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            yield from (Import(importer, name) for name in names)


IMPORTS = tuple(_imports())
OURS = tuple(found for found in IMPORTS if found.imported.startswith("taxbreak_vllm."))


def test_every_room_has_its_floor_and_every_floor_its_rooms():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}

    assert rooms - {"__init__"} == set(FLOOR)


def test_imports_point_down():
    wrong = [found for found in OURS if found.room != found.target and FLOOR[found.target] >= FLOOR[found.room]]

    assert wrong == []


def test_serving_stands_on_the_two_lowest_floors_and_only_the_plugin_reaches_it():
    assert [
        found for found in OURS if found.room == "serving" and found.target != "serving" and FLOOR[found.target] > 2
    ] == []
    assert {found.room for found in OURS if found.target == "serving"} <= {"serving", "plugin"}


def test_the_rooms_of_the_service_know_only_its_results():
    """`app` and `mount` put together what http, metrics, otlp and processes are."""
    may = {room: {"results"} for room in ("http", "metrics", "otlp", "processes")}
    may |= {"results": set(), **{door: {"results", *may} for door in ("app", "mount")}}
    inner = [
        (found.importer, found.imported.split(".")[2])
        for found in OURS
        if found.room == found.target == "service" and found.importer.split(".")[2] != found.imported.split(".")[2]
    ]

    assert inner
    assert [(importer, room) for importer, room in inner if room not in may[importer.split(".")[2]]] == []


@pytest.mark.parametrize("package", OUTSIDE)
def test_what_only_a_serving_process_has_is_imported_only_there(package):
    importers = {found.room for found in IMPORTS if found.imported.partition(".")[0] == package}

    assert importers <= OUTSIDE[package]


@pytest.mark.parametrize("room", ["serving", "trace"])
def test_pandas_stays_out_of_the_worker_and_of_the_trace(room):
    ours = [found for found in IMPORTS if found.importer.startswith(f"taxbreak_vllm.{room}.")]

    assert ours
    assert [found for found in ours if found.imported.startswith("pandas")] == []


@pytest.mark.parametrize("module", ["taxbreak_vllm.trace", "taxbreak_vllm.taxes.analyze", "taxbreak_vllm.cli"])
def test_analysis_imports_where_torch_and_vllm_cannot_be(module):
    script = f"import sys; sys.modules['torch'] = sys.modules['vllm'] = None; import {module}"

    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_package_itself_loads_none_of_its_heavy_parts():
    heavy = {"pandas", "numpy", "torch", "vllm", "fastapi", "rich"}
    script = f"import sys, taxbreak_vllm; print(*({heavy} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True)

    assert loaded.stdout.split() == []
