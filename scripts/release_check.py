"""Build what is published, and try it as who installs it does; `make release-check`.

Into dist/ go the sdist and the wheel built from it, judged by twine. The wheel alone is then installed into a new venv,
where its command analyzes a trace and runs the sidecar: /healthz, /metrics and the page have to answer, and SIGTERM has
to end it. Needs git, Python and a package index.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
TRACE = ROOT / "tests" / "data" / "traces" / "a100_hta_graphs_step551.json.gz"
TOOLS = ("build==1.3.0", "twine==6.2.0")
START_S = 60.0
END_S = 15.0

# Neither the checkout nor settings of whoever runs this may lend the wheel anything.
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("TAXBREAK_")}


def main() -> int:
    """Run every step; the first that fails ends it."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with tempfile.TemporaryDirectory(prefix="taxbreak-release-") as folder:
        place = Path(folder)
        _say("build: sdist, and the wheel from it")
        shutil.rmtree(DIST, ignore_errors=True)
        tools = _make_venv(place / "tools", *TOOLS)
        _run(tools, "-m", "build", "--outdir", DIST, _copy(place / "source"))
        (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
        if {wheel.name, sdist.name} != {f"taxbreak_vllm-{version}-py3-none-any.whl", f"taxbreak_vllm-{version}.tar.gz"}:
            return _fail(f"{wheel.name}, {sdist.name}: not of version {version}")
        _say("twine check --strict")
        _run(tools, "-m", "twine", "check", "--strict", wheel, sdist)
        _say("a new venv with the wheel alone")
        installed = _make_venv(place / "installed", str(wheel))
        found = _run(installed, "-c", "import taxbreak_vllm; print(taxbreak_vllm.__file__)", cwd=place).strip()
        if not found.startswith(str(place)):
            return _fail(f"{found}: not the wheel's")
        command = installed.with_name("taxbreak")
        breakdown = json.loads(_run(command, "analyze", "--json", TRACE, cwd=place))
        if breakdown["schema"] != "taxbreak.breakdown/1":
            return _fail(f"taxbreak analyze: {breakdown['schema']}")
        _say("the sidecar")
        return _try_sidecar(command, place, version)


def _copy(folder: Path) -> Path:
    """Copy what git has: what an earlier build left in the checkout, setuptools would take into this one."""
    for name in _run(Path("git"), "ls-files").splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def _try_sidecar(command: Path, place: Path, version: str) -> int:
    log = place / "sidecar.log"
    words = [command, "serve", "--spool", place / "spool", "--port", "0"]
    with log.open("wb") as file:
        sidecar = subprocess.Popen(words, cwd=place, env=ENV, stdout=file, stderr=file)
    wanted = {"/healthz": "", "/metrics": f'taxbreak_build_info{{version="{version}"}} 1.0', "/": "<html"}
    path = ""
    try:
        url = _listening(sidecar, log)
        for path, text in wanted.items():
            with urllib.request.urlopen(url + path, timeout=10) as answer:
                if text not in answer.read().decode():
                    return _fail(f"{path}: no {text} in it")
        sidecar.send_signal(signal.SIGTERM)
        code = sidecar.wait(END_S)
    except OSError as error:
        return _fail(f"{path}: {error}:\n{log.read_text()}")
    finally:
        sidecar.kill()
    if code not in (0, -signal.SIGTERM):
        return _fail(f"the sidecar ended with {code}:\n{log.read_text()}")
    _say(f"done; publishing is: python -m twine upload {DIST.name}/*")
    return 0


def _listening(sidecar: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + START_S
    while sidecar.poll() is None and time.monotonic() < deadline_s:
        if said := re.search(r"listening on (http://\S+)", log.read_text()):
            return said[1]
        time.sleep(0.1)
    raise SystemExit(f"release-check: the sidecar does not listen:\n{log.read_text()}")


def _make_venv(folder: Path, *packages: str) -> Path:
    """Make a venv with packages and return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return python


def _run(program: Path, *words: str | Path, cwd: Path = ROOT) -> str:
    """Run a program to its end and return what it printed; ends this one where it fails."""
    command: Sequence[str | Path] = (program, *words)
    done = subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"release-check: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def _say(line: str) -> None:
    print(f"release-check: {line}", file=sys.stderr, flush=True)


def _fail(line: str) -> int:
    _say(line)
    return 1


if __name__ == "__main__":
    sys.exit(main())
