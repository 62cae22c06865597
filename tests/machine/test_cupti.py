import ctypes
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from taxbreak_vllm.machine.cupti import loaded_cupti_version

_MAP = "7f70c0000000-7f70c0001000 r-xp 00000000 08:01 123    {}\n"


def test_the_library_that_is_loaded_says_its_version(tmp_path):
    """A stand-in library, loaded into a process of its own and found in the maps of that."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "cupti.c", tmp_path / "libcupti.so.13"
    source.write_text("int cuptiGetVersion(unsigned *version) { *version = 130001; return 0; }")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    script = (
        "import ctypes, sys; from taxbreak_vllm.machine.cupti import loaded_cupti_version as v; "
        "before = v(); ctypes.CDLL(sys.argv[1]); print(before, v())"
    )

    said = subprocess.run([sys.executable, "-c", script, library], check=True, capture_output=True, text=True).stdout

    assert said == "None 130001\n"


def _says(result):
    def get(pointer):
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint32))[0] = 28
        return result

    return SimpleNamespace(cuptiGetVersion=get)


def _fails():
    raise OSError("not a library")


@pytest.mark.parametrize(
    ("load", "version"),
    [
        (lambda path: _says(0), 28),
        (lambda path: _says(1), None),
        (lambda path: SimpleNamespace(), None),
        (lambda path: _fails(), None),
    ],
)
def test_a_library_that_does_not_answer_has_no_version(tmp_path, load, version):
    maps = tmp_path / "maps"
    maps.write_text(_MAP.format("/opt/a folder/libcupti.so.12"))
    loaded = []

    assert loaded_cupti_version(maps, lambda path: loaded.append(path) or load(path)) == version
    assert loaded == ["/opt/a folder/libcupti.so.12"]


def test_a_system_without_maps_has_none(tmp_path):
    assert loaded_cupti_version(tmp_path / "nowhere") is None
