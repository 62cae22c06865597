"""The plugins of vLLM that tests have of their own: in goes a folder, out a PYTHONPATH in which vLLM finds them."""

import os
from pathlib import Path

_NAMES = ("slow_places", "simulated", "faulty_hooks")


def python_path(folder: Path) -> str:
    """Make the plugins a distribution in a folder, before the caller's own."""
    info = folder / "rig-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rig\nVersion: 0\n")
    points = "".join(f"{name} = rig.{name}:register\n" for name in _NAMES)
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{points}")
    folders = (folder, Path(__file__).parents[1], os.environ.get("PYTHONPATH"))
    return os.pathsep.join(str(each) for each in folders if each)
