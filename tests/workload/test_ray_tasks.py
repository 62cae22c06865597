"""Ray's workers do what processes here do: each value comes to one answer, also where a worker is killed over it."""

import os
from pathlib import Path

import dying_work
import pytest

from taxbreak_vllm.workload.ray_tasks import LOCAL, on_ray

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(300)]


def lost(value, reason):
    return f"{value}: {reason}"


def test_what_a_worker_is_killed_over_is_done_again_and_nothing_is_lost_or_twice(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    path = os.pathsep.join(filter(None, (str(Path(dying_work.__file__).parent), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)  # of Ray's workers

    work = dying_work.added_by_another
    found = list(on_ray(work, (str(tmp_path), 100), range(6), lost, address=LOCAL, num_workers=2))

    assert sorted(found) == [(n, n + 100) for n in range(6)]
    tries = sorted(path.name for path in tmp_path.iterdir())
    assert tries == ["0-0", "1-0", "1-1", "2-0", "3-0", "3-1", "4-0", "5-0", "5-1"]
