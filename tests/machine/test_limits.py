"""What a worker's process may use, from a tree like /proc and /sys/fs/cgroup."""

import os

import pytest

from taxbreak_vllm.machine.limits import Machine, read_machine


@pytest.fixture
def tree(tmp_path):
    """A worker with the processors 0-7, in a container; `make` writes what differs."""

    def make(*, cmdline="python\0vllm serve", environ="A=1\0OMP_NUM_THREADS=8\0", maximum="max 100000", stat=""):
        process, group = tmp_path / "proc" / "7", tmp_path / "cgroup" / "box"
        process.mkdir(parents=True)
        group.mkdir(parents=True)
        (process / "cmdline").write_text(cmdline)
        (process / "environ").write_text(environ)
        (process / "cgroup").write_text("0::/box\n")
        (process / "status").write_text("Name:\tpython\nCpus_allowed:\t00000000,000000ff\n")
        (group / "cpu.max").write_text(maximum)
        (group / "cpu.stat").write_text(stat)
        return {"proc": tmp_path / "proc", "cgroups": tmp_path / "cgroup"}

    return make


@pytest.mark.parametrize(
    ("differs", "machine"),
    [
        ({}, Machine(cpu_limit=8, omp_threads=8)),
        ({"maximum": "150000 100000"}, Machine(cpu_limit=1.5, omp_threads=8)),
        ({"environ": ""}, Machine(cpu_limit=8)),
        ({"stat": "nr_periods 10\nnr_throttled 4\n"}, Machine(cpu_limit=8, omp_threads=8, throttled_ratio=0.4)),
        ({"stat": "nr_periods 0\nnr_throttled 0\n"}, Machine(cpu_limit=8, omp_threads=8)),
        ({"cmdline": "nginx"}, None),
    ],
)
def test_limits_threads_and_throttling_are_read(tree, differs, machine):
    assert read_machine(7, **tree(**differs)) == machine


def test_a_process_that_is_not_to_be_seen_tells_nothing(tree):
    assert read_machine(8, **tree()) is None


def test_a_real_process_that_is_no_vllm_tells_nothing():
    assert read_machine(os.getppid()) is None
