"""Write the kustomize patches from the Helm chart's: `helm template taxbreak CHART … | python generate.py [FOLDER]`.

In: what the chart renders, its patch among it. Out: the same for a Deployment or StatefulSet, and as JSON patches for
what kustomize cannot merge lists of, LeaderWorkerSets and KServe's InferenceServices; by default beside this file.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

HEAD = "# Written by generate.py from the Helm chart's patch.\n"
LEADER, WORKER = (f"/spec/leaderWorkerTemplate/{part}Template" for part in ("leader", "worker"))


def deployment(template: dict[str, Any]) -> Any:  # noqa: ANN401 - a manifest
    """Return a strategic merge patch; its name stands for any."""
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "any"}, "spec": {"template": template}}


def leader_worker_set(template: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return operations on leader and workers, whose first container has env and mounts, in pods with volumes."""
    labels = template["metadata"]["labels"]
    return [
        *(_add(f"{LEADER}/metadata/labels/{name.replace('/', '~1')}", value) for name, value in labels.items()),
        _add(f"{WORKER}/metadata", {"labels": labels}),
        *(operation for at in (LEADER, WORKER) for operation in _of_pod(template["spec"], f"{at}/spec")),
    ]


def inference_service(template: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return operations on a predictor with a model and nothing else of its own."""
    (container,) = template["spec"]["containers"]
    at = "/spec/predictor"
    return [
        _add(f"{at}/labels", template["metadata"]["labels"]),
        _add(f"{at}/initContainers", template["spec"]["initContainers"]),
        _add(f"{at}/volumes", template["spec"]["volumes"]),
        _add(f"{at}/model/env", container["env"]),
        _add(f"{at}/model/volumeMounts", container["volumeMounts"]),
    ]


def _of_pod(spec: dict[str, Any], at: str) -> list[dict[str, Any]]:
    (container,) = spec["containers"]
    return [
        _add(f"{at}/enableServiceLinks", spec["enableServiceLinks"]),
        _add(f"{at}/initContainers", spec["initContainers"]),
        *(_add(f"{at}/volumes/-", volume) for volume in spec["volumes"]),
        *(_add(f"{at}/containers/0/env/-", variable) for variable in container["env"]),
        *(_add(f"{at}/containers/0/volumeMounts/-", mount) for mount in container["volumeMounts"]),
    ]


def _add(path: str, value: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"op": "add", "path": path, "value": value}


class _Plain(yaml.SafeDumper):
    """Repeats what stands twice, as nobody reads anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def main(rendered: str, folder: Path) -> None:
    """Write every patch into a folder."""
    found = [document for document in yaml.safe_load_all(rendered) if document]
    (patch,) = (document["data"]["patch.yaml"] for document in found if "patch.yaml" in document.get("data", {}))
    template = yaml.safe_load(patch)["spec"]["template"]
    made = {"deployment": deployment, "leaderworkerset": leader_worker_set, "inferenceservice": inference_service}
    for name, make in made.items():
        text = yaml.dump(make(template), Dumper=_Plain, sort_keys=False, width=120)
        (folder / f"{name}.yaml").write_text(HEAD + text)


if __name__ == "__main__":
    main(sys.stdin.read(), Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
