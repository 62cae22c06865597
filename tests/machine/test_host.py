"""What a recording says of its host is read from /proc and /sys; what is not there is None."""

from taxbreak_vllm.machine.host import ThisHost
from taxbreak_vllm.model.host import HostFacts


def trees(root, *, governors=("powersave",)):
    proc, sys = root / "proc", root / "sys"
    group = sys / "fs" / "cgroup" / "pod"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/pod\n")
    (proc / "self" / "status").write_text("Name:\tx\nCpus_allowed:\tf\n")
    for number, name in enumerate(governors):
        folder = sys / "devices" / "system" / "cpu" / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{name}\n")
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("250000 100000\n")
    (group / "cpu.stat").write_text("nr_periods 10\nnr_throttled 2\n")
    return ThisHost(proc=proc, sys=sys), group


def test_a_host_is_read_and_what_changes_is_read_again(tmp_path):
    host, group = trees(tmp_path, governors=("performance", "powersave", "powersave"))
    first = host.facts(runqueue_wait_ratio=0.25)
    (group / "cpu.stat").write_text("nr_periods 20\nnr_throttled 20\n")

    assert (first.governor, first.num_allowed, first.cpu_limit) == ("performance, powersave", 4, 2.5)
    assert (first.throttled_ratio, first.runqueue_wait_ratio) == (0.2, 0.25)
    assert host.facts().throttled_ratio == 1.0


def test_where_nothing_can_be_read_nothing_is_known(tmp_path):
    facts = ThisHost(proc=tmp_path / "none", sys=tmp_path / "none").facts()

    assert facts == HostFacts(cpu=facts.cpu, num_cpus=facts.num_cpus)
