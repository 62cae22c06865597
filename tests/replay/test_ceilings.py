"""What this machine reaches, measured for real, and what a clock of our own makes of it."""

import time
from itertools import count

import pytest

torch = pytest.importorskip("torch", reason="replay needs torch")

from taxbreak_vllm.replay import ceilings  # noqa: E402 - after the check for torch
from taxbreak_vllm.replay.ceilings import WORKING_SETS, measure_ceilings  # noqa: E402


@pytest.fixture(scope="module")
def reached():
    return measure_ceilings("cpu", 0.5, shortest_kernel_ns=7, now_ns=lambda: 77)


@pytest.fixture
def small(monkeypatch):
    """Make each way one call of little work, for tests whose clock does not care."""
    monkeypatch.setattr(ceilings, "WORKING_SETS", (2**16, 2**17))
    monkeypatch.setattr(ceilings, "_SHAPES", {"cpu": ((64, 64, 64), (96, 96, 96))})
    monkeypatch.setattr(ceilings, "_MOST_CALLS", 1)


def test_every_type_has_a_figure_or_a_reason(reached):
    assert {*reached.flops_per_s, *reached.missing} == {"bf16", "fp16", "fp32", "tf32", "fp8", "fp4", "int8", "fp64"}
    assert not reached.flops_per_s.keys() & reached.missing.keys()
    assert reached.flops_per_s.keys() >= {"bf16", "fp32"}
    assert (reached.shortest_kernel_ns, reached.measured_unix_ns) == (7, 77)


def test_what_a_plain_product_reaches_is_no_more_than_the_ceiling(reached):
    x = torch.randn(512, 512)
    times_s = []
    for _ in range(5):
        begun_s = time.perf_counter()
        torch.mm(x, x)
        times_s.append(time.perf_counter() - begun_s)

    rate = reached.flops_per_s["fp32"].per_s
    assert 2 * 512**3 / min(times_s) < 5 * rate  # beside others' work, either may have had the machine to itself
    assert 1e9 < rate < 1e14


def test_every_working_set_has_a_bandwidth(reached):
    assert tuple(reached.bytes_per_s) == WORKING_SETS
    assert all(1e8 < rate.per_s < 1e13 for rate in reached.bytes_per_s.values())


def test_rates_are_work_over_the_time_of_the_clock_and_each_has_one_however_little_time_there_is(small):
    ticks = count()

    found = measure_ceilings("cpu", 0.001, now_s=lambda: next(ticks) / 1000)  # each reading is a millisecond later

    assert found.flops_per_s["fp32"].per_s == pytest.approx(2 * 64**3 / 1e-3)
    assert found.flops_per_s["fp32"].by == "mm 64×64×64, 1 core"
    assert {size: rate.per_s for size, rate in found.bytes_per_s.items()} == pytest.approx(
        {2**16: 2**16 / 1e-3, 2**17: 2**17 / 1e-3}
    )


def test_what_a_device_refuses_is_a_reason_and_torch_is_left_as_it_was(small, monkeypatch):
    def refuses(*operands, **how):
        raise RuntimeError("no such kernel\non this device")

    monkeypatch.setattr(torch, "_int_mm", refuses)
    ticks = count()
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()

    found = measure_ceilings("cpu", 0.001, now_s=lambda: next(ticks) / 1000)

    assert found.missing["int8"] == "int_mm 64×64×64, 1 core: no such kernel"
    assert "int8" not in found.flops_per_s
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def test_the_best_of_several_ways_stands_and_its_name_with_it(small, monkeypatch):
    """A clock on which `mm` of the second shape takes a tenth of what anything else does."""
    now_ms = 0.0
    real = torch.mm

    def quick(a, b, out):
        nonlocal now_ms
        now_ms -= 0.9 if a.shape[0] == 96 else 0
        return real(a, b, out=out)

    monkeypatch.setattr(torch, "mm", quick)

    def now_s():
        nonlocal now_ms
        now_ms += 1
        return now_ms / 1000

    found = measure_ceilings("cpu", 1.0, now_s=now_s)

    assert found.flops_per_s["fp32"].by.startswith("mm 96×96×96")
    assert found.flops_per_s["fp32"].per_s == pytest.approx(2 * 96**3 / 1e-4)
