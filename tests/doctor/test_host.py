"""Each fault planted into a tree like /proc and /sys, and found there."""

import os

import pytest

from taxbreak_vllm.doctor import gpu, host
from taxbreak_vllm.doctor.finding import Grade

CPU = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"
PARAMS = "proc/driver/nvidia/params"
STATUS = "proc/self/status"
IN_BOX = {"proc/self/cgroup": "0::/box\n"}
BOX = "sys/fs/cgroup/box/"


@pytest.fixture
def plant(tmp_path):
    """A host with these files."""

    def plant(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return host.Host(proc=tmp_path / "proc", sys=tmp_path / "sys")

    return plant


@pytest.mark.parametrize(
    ("check", "files", "grade", "seen"),
    [
        (host.governor, {}, "ok", "absent"),
        (host.governor, {CPU.format(0): "performance\n", CPU.format(1): "performance\n"}, "ok", "performance on 2"),
        (host.governor, {CPU.format(0): "powersave\n", CPU.format(1): "performance\n"}, "warning", "powersave on 1"),
        (host.processors, {}, "ok", "absent"),
        (host.processors, {STATUS: "Cpus_allowed:\tff\n"}, "ok", "8 processors"),
        (host.processors, {STATUS: "Cpus_allowed:\t1\n"}, "warning", "1 processors"),
        (host.processors, IN_BOX | {f"{BOX}cpu.max": "150000 100000\n"}, "warning", "1.5 processors"),
        (host.processors, IN_BOX | {f"{BOX}cpu.max": "max 100000\n", STATUS: "Cpus_allowed:\tf\n"}, "ok", "4 proc"),
        (host.throttling, {}, "ok", "absent"),
        (host.throttling, IN_BOX | {f"{BOX}cpu.stat": "nr_periods 1000\nnr_throttled 5\n"}, "ok", "0.5%"),
        (host.throttling, IN_BOX | {f"{BOX}cpu.stat": "nr_periods 100\nnr_throttled 40\n"}, "warning", "40.0%"),
        (host.throttling, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.stat": "nr_periods 2\nnr_throttled 1\n"},
         "warning", "50.0%"),
        (host.memory, {}, "ok", "absent"),
        (host.memory, {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  4194304 kB\n"}, "ok", "4.0 GiB"),
        (host.memory, {"proc/meminfo": "MemAvailable: 524288 kB\n"}, "warning", "512 MiB"),
        (host.memory, {"proc/meminfo": "MemAvailable: 1024 kB\n"}, "fail", "1 MiB"),
        (host.memory, IN_BOX | {"proc/meminfo": "MemAvailable: 9999999 kB\n", f"{BOX}memory.max": str(2**30),
         f"{BOX}memory.current": str(2**30 - 2**20)}, "fail", "1 MiB"),
        (host.memory, IN_BOX | {"proc/meminfo": "MemAvailable: 4194304 kB\n", f"{BOX}memory.max": "max",
         f"{BOX}memory.current": "5"}, "ok", "4.0 GiB"),
        (host.clock, {}, "ok", "absent"),
        (host.clock, {CLOCK: "tsc\n"}, "ok", "tsc"),
        (host.clock, {CLOCK: "hpet\n"}, "warning", "hpet: reading the time is a system call"),
        (host.run_queue, {"proc/self/schedstat": "100 20 3\n"}, "ok", "the kernel tells"),
        (host.run_queue, {"proc/self/schedstat": "0 0 0\n"}, "warning", "does not tell"),
        (host.run_queue, {}, "warning", "does not tell"),
        (host.perf_events, {}, "ok", "absent"),
        (host.perf_events, {"proc/sys/kernel/perf_event_paranoid": "4\n"}, "ok", "perf_event_paranoid is 4"),
        (gpu.profiling_permission, {}, "ok", "absent: no NVIDIA driver"),
        (gpu.profiling_permission, {PARAMS: "EnableMSI: 1\nRmProfilingAdminOnly: 0\n"}, "ok", "every user"),
        (gpu.profiling_permission, {PARAMS: "RmProfilingAdminOnly: 1\n", STATUS: "CapEff:\t0000000000000000\n"},
         "warning", "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"),
        (gpu.profiling_permission, {PARAMS: "RmProfilingAdminOnly: 1\n", STATUS: "CapEff:\t0000004000000000\n"},
         "ok", "this is one"),
        (gpu.profiling_permission, {PARAMS: "RmProfilingAdminOnly: 1\n", STATUS: "CapEff:\t000001ffffffffff\n"},
         "ok", "this is one"),
    ],
)  # fmt: skip
def test_a_fault_of_the_host_is_found_and_its_absence_is_said(plant, check, files, grade, seen):
    found = check(plant(files))

    assert (found.grade, seen in found.seen) == (Grade(grade), True), found
    assert bool(found.remedy) == (found.grade is not Grade.OK)


@pytest.mark.parametrize(
    ("version", "has_cuda", "grade", "seen", "remedy"),
    [
        (None, False, "ok", "absent: this torch has no CUDA", ""),
        (None, True, "ok", "not known", ""),
        (22, True, "ok", "no fault is known", ""),
        (130101, True, "ok", "no fault is known", ""),
        (24, True, "warning", "may be missing", "take a torch for CUDA 13"),
        (130000, True, "warning", "after 20,000,000 records of one process it leaks", "install nvidia-cuda-cupti"),
    ],
)
def test_a_cupti_with_known_faults_is_named_with_them(version, has_cuda, grade, seen, remedy):
    found = gpu.cupti_version(version, has_cuda=has_cuda)

    assert found.grade == grade
    assert seen in found.seen
    assert found.remedy.startswith(remedy)


@pytest.mark.parametrize(("free", "grade"), [(2**31, "ok"), (2**29, "warning"), (2**20, "fail")])
def test_a_temporary_folder_without_room_is_found(tmp_path, monkeypatch, free, grade):
    monkeypatch.setattr(host.shutil, "disk_usage", lambda folder: os.terminal_size((0, 0)) and _Usage(free))

    assert host.temporary_folder(tmp_path).grade == grade


def test_a_temporary_folder_that_is_not_there_is_found(tmp_path):
    assert host.temporary_folder(tmp_path / "none").grade == "fail"


class _Usage:
    def __init__(self, free):
        self.free = free


def test_this_very_host_is_examined_without_a_fault_of_ours():
    here = host.Host()

    for check in (host.governor, host.processors, host.throttling, host.memory, host.clock, host.run_queue):
        assert check(here).seen
