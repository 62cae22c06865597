"""What share of a trace's kernels a tool keeps that joins only `*LaunchKernel*` calls under `aten::` ops (SODA does).

    python benchmarks/linking.py TRACE.json.gz…

Prints one JSON object: per file, kernels, those joined to any launch (ours), and those such a tool keeps.
"""

import json
import sys
from pathlib import Path

import numpy as np

from taxbreak_vllm.trace.dispatches import link
from taxbreak_vllm.trace.read.kineto import read_events


def main() -> None:
    """Print the counts of every file on the command line."""
    print(json.dumps({Path(path).name: _count(path) for path in sys.argv[1:]}))


def _count(path: str) -> dict[str, int]:
    events = read_events(path)
    _, activities, dispatches = link(events)
    is_launch_kernel = np.array(["LaunchKernel" in name for name in events.names])
    is_aten = np.array([name.startswith("aten::") for name in events.names] + [False])  # the last one: no op at all
    keeps = is_launch_kernel[events.name[dispatches.row]] & is_aten[dispatches.leaf_name]
    linked = activities.is_kernel & (activities.dispatch >= 0)
    return {
        "kernels": int(activities.is_kernel.sum()),
        "linked": int(linked.sum()),
        "launch_kernel_under_aten": int(keeps[activities.dispatch[linked]].sum()),
    }


if __name__ == "__main__":
    main()
