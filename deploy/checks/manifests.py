"""Sort rendered manifests: `python manifests.py FOLDER FILE…`.

What Kubernetes itself defines goes to FOLDER/FILE, what the Prometheus operator defines to FOLDER/FILE.crds.json, and
the chart's patch for vLLM to FOLDER/FILE.patch.
"""

import json
import sys
from pathlib import Path

import yaml


def main(folder: Path, files: list[Path]) -> None:
    """Write the three files for each given one."""
    for file in files:
        found = [document for document in yaml.safe_load_all(file.read_text()) if document]
        custom = [document for document in found if document["apiVersion"].startswith("monitoring.coreos.com/")]
        (patch,) = (document["data"]["patch.yaml"] for document in found if "patch.yaml" in document.get("data", {}))
        (folder / file.name).write_text(yaml.safe_dump_all(d for d in found if d not in custom))
        (folder / f"{file.name}.crds.json").write_text(json.dumps(custom))
        (folder / f"{file.name}.patch").write_text(patch)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
