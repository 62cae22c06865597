"""What is installed and set here: settings, vLLM and how it sees the plugin, torch, other profilers.

In: what package metadata, the environment and a child that imports torch say. Out: findings.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from pathlib import Path

import msgspec

from taxbreak_vllm.doctor.finding import Finding, fail, ok, warning
from taxbreak_vllm.machine.injected import injected_profiler
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.settings import Settings, load_settings

PLUGIN = "taxbreak"
_GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins")
_PROBE_S = 120
_PROBE = """
import json, torch
from taxbreak_vllm.machine.cupti import loaded_cupti_version
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
    "kineto": torch.profiler.kineto_available(), "cupti": loaded_cupti_version(),
    "activities": sorted(str(each).rpartition(".")[2] for each in torch.profiler.supported_activities()),
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """What a torch says of itself."""

    version: str
    cuda: str | None
    hip: str | None
    kineto: bool
    activities: list[str]
    cupti: int | None


def probe_torch() -> Torch | str:
    """Ask torch in a child, so that none is loaded here; return why there is no answer otherwise."""
    if find_spec("torch") is None:
        return "absent"
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=_PROBE_S, check=True)
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Torch)
    except subprocess.CalledProcessError as error:
        return str(error.stderr.decode(errors="replace").strip().rpartition("\n")[2] or error)
    except (OSError, subprocess.TimeoutExpired, IndexError, msgspec.MsgspecError) as error:
        return str(error)


def settings(load: Callable[[], Settings] = load_settings) -> tuple[Settings, Finding]:
    """Judge the `TAXBREAK_*` variables; return the settings they make, or the defaults where they are wrong."""
    check = "settings"
    try:
        return load(), ok(check, "every TAXBREAK_ variable is one, and within its bounds")
    except SettingsError as error:
        return Settings.model_construct(), fail(check, str(error), "correct it: a vLLM server would serve without us")


def installed(name: str) -> str | None:
    """Return the version of a package of this environment."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def vllm_version(found: str | None, ranges: Iterable[str] = ()) -> Finding:
    """Judge vLLM's version by the range that the package's extra allows, such as `<0.34,>=0.26`."""
    check = "vLLM"
    if found is None:
        return ok(check, "absent: not in this environment (for a server's, run taxbreak doctor in it)")
    (allowed,) = tuple(ranges) or tuple(_allowed(requires("taxbreak-vllm") or ()))
    if _is_within(found, allowed):
        return ok(check, f"{found}, of {allowed}")
    return warning(
        check,
        f"{found}: outside {allowed}, with which it was tried",
        "install a version of that range, or see that steps are timed at all",
    )


def plugin(found: Iterable[EntryPoint] | None = None, *, environ: Mapping[str, str] = os.environ) -> Finding:
    """Judge whether vLLM finds the plugin, and whether VLLM_PLUGINS lets it load."""
    check = "plugin"
    points = [point for group in _GROUPS for point in entry_points(group=group)] if found is None else list(found)
    ours = {point.group: point for point in points if point.name == PLUGIN}
    if missing := [group for group in _GROUPS if group not in ours]:
        return fail(
            check,
            f"no entry point {PLUGIN} in {', '.join(missing)}: vLLM does not find us by name",
            "install the package into the server's environment with pip; on PYTHONPATH alone it has no entry points",
        )
    if lost := [point.value for point in ours.values() if not _is_module(point.module)]:
        return fail(check, f"its entry point leads nowhere: {', '.join(lost)}", "install the package anew")
    named = environ.get("VLLM_PLUGINS")
    if named is None:
        return ok(check, "installed; VLLM_PLUGINS is not set: it needs --worker-extension-cls, or its name there")
    if PLUGIN in named.split(","):
        return ok(check, f"installed, and named in VLLM_PLUGINS={named}")
    return warning(
        check,
        f"installed, but VLLM_PLUGINS={named} lets only those load",
        f"add {PLUGIN} to VLLM_PLUGINS; an engine's loop is not timed without, whatever --worker-extension-cls says",
    )


def torch_kineto(found: Torch | str) -> Finding:
    """Judge whether torch can record."""
    check = "torch"
    if found == "absent":
        return ok(check, "absent: not in this environment; the sidecar and the analysis of traces need none")
    if isinstance(found, str):
        return fail(check, f"cannot be imported: {found}", "mend the installation of torch")
    seen = f"{found.version}, Kineto records {', '.join(found.activities) or 'nothing'}"
    if not found.kineto:
        return fail(
            check, f"{found.version} was built without Kineto", "install a torch with Kineto: all wheels have it"
        )
    has_device = bool(found.cuda or found.hip)
    if has_device and "CUDA" not in found.activities:
        return fail(check, f"{seen}, but no device", "install a torch built with CUPTI or roctracer")
    return ok(check, seen)


def other_profilers(environ: Mapping[str, str] = os.environ, *, proc: Path = Path("/proc")) -> Finding:
    """Judge whether a profiler is injected into what is started from here, or into a vLLM that runs."""
    check = "other profilers"
    found = [f"{name} is set here" for name in [injected_profiler(environ)] if name]
    found += [
        f"{name} is set in process {pid}" for pid, of_server in _servers(proc) if (name := injected_profiler(of_server))
    ]
    if not found:
        return ok(check, "none is injected")
    return warning(
        check,
        f"{'; '.join(found)}: CUPTI takes one subscriber a process, so no step is recorded there",
        "start the server without nsys, ncu or rocprof, and unset the variable",
    )


def _servers(proc: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the environment of every vLLM process that this user may look into."""
    for folder in sorted(proc.glob("[0-9]*")):
        try:
            if b"vllm" in (folder / "cmdline").read_bytes().lower():
                entries = (folder / "environ").read_text(errors="replace").split("\0")
                yield int(folder.name), dict(entry.partition("=")[::2] for entry in entries)
        except OSError:
            continue


def _allowed(requirements: Iterable[str]) -> Iterator[str]:
    for requirement in requirements:
        if found := re.match(r"vllm\s*([<>=!~][^;]*?)\s*;", requirement):
            yield found[1]


def _is_within(found: str, allowed: str) -> bool:
    have = _numbers(found)
    tests: dict[str, Callable[[list[int]], bool]] = {">=": lambda bound: have >= bound, "<": lambda bound: have < bound}
    parts = (re.fullmatch(r"\s*(>=|<)\s*([\d.]+)\s*", part) for part in allowed.split(","))
    return all(part is not None and tests[part[1]](_numbers(part[2])) for part in parts)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3]]


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
