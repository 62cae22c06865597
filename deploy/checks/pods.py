"""Take the pods out of custom resources, for tools that know Kubernetes' own alone: `python pods.py FOLDER FILE`.

Of FILE, manifests of several stacks, Deployments go to FOLDER/stacks.yaml as they are; each pod of a LeaderWorkerSet
and of an InferenceService goes there as a Pod, the latter's container as KServe calls it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def pods(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what Kubernetes itself knows of a manifest."""
    name, spec = found["metadata"]["name"], found["spec"]
    if found["kind"] == "LeaderWorkerSet":
        for part in ("leader", "worker"):
            yield _pod(f"{name}-{part}", spec["leaderWorkerTemplate"][f"{part}Template"])
    elif found["kind"] == "InferenceService":
        predictor = dict(spec["predictor"])
        model, labels = predictor.pop("model"), predictor.pop("labels")
        container = {name: model[name] for name in ("env", "volumeMounts")}
        predictor["containers"] = [
            {"name": "kserve-container", "image": "kserve/huggingfaceserver:v0.16.0", **container}
        ]
        yield _pod(name, {"metadata": {"labels": labels}, "spec": predictor})
    else:
        yield found


def _pod(name: str, template: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **template["metadata"]},
        "spec": template["spec"],
    }


def main(folder: Path, file: Path) -> None:
    """Write the one file."""
    found = [pod for document in yaml.safe_load_all(file.read_text()) for pod in pods(document)]
    (folder / "stacks.yaml").write_text(yaml.safe_dump_all(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
