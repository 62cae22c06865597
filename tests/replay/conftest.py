"""Children that know the ops of `slow_ops`, started as seldom as can be: each loads torch."""

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="replay needs torch")

from taxbreak_vllm.replay.runner import Child
from taxbreak_vllm.replay.task import Options

HERE = Path(__file__).parent


class Kept(Child):
    """A child that outlives the run it serves."""

    def close(self):
        pass

    def end(self):
        super().close()


@pytest.fixture(scope="session")
def slow_ops():
    """The module, registered here and importable in every process started from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", ""))))
        patch.setenv("KINETO_LOG_LEVEL", "6")
        import slow_ops

        yield slow_ops
        sys.modules.pop("slow_ops")


@pytest.fixture(scope="session")
def children(slow_ops):
    """Give the kept child of a device, the same for all who ask."""
    kept = {}

    def child(device="cpu"):
        if device not in kept:
            kept[device] = Kept(Options(device=device, modules=("slow_ops",), niceness=0))
        return kept[device]

    yield child
    for child_ in kept.values():
        child_.end()
