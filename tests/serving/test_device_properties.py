"""What a device says of itself, where torch tells it, where its driver alone does, and where nobody does."""

import sys
from types import SimpleNamespace

import pytest

from taxbreak_vllm.serving import device_properties
from taxbreak_vllm.serving.device_properties import properties_of

NEW = {"clock_rate": 1_980_000, "memory_clock_rate": 2_619_000, "memory_bus_width": 5120}
DRIVER = {13: 1_980_000, 36: 2_619_000, 37: 5120}


@pytest.fixture
def torch(monkeypatch):
    def torch(hip=None, own=None, raises=False, **more):
        own = {"multi_processor_count": 132, "L2_cache_size": 50 * 2**20, "major": 9, "minor": 0, **more}

        def properties(device):
            if raises:
                raise RuntimeError("CUDA error: unknown")
            return SimpleNamespace(**own)

        cuda = SimpleNamespace(get_device_properties=properties, current_device=lambda: 0)
        monkeypatch.setitem(
            sys.modules, "torch", SimpleNamespace(cuda=cuda, version=SimpleNamespace(hip=hip, cuda="12.9"))
        )

    return torch


GPU = SimpleNamespace(type="cuda", index=0)


@pytest.mark.parametrize("is_told_by_torch", [True, False])
def test_clocks_and_bus_are_told_by_torch_or_else_by_the_driver(torch, monkeypatch, is_told_by_torch):
    torch(**(NEW if is_told_by_torch else {}))
    answers = {} if is_told_by_torch else DRIVER
    monkeypatch.setattr(device_properties, "_driver", lambda index: lambda attribute: answers.get(attribute, 0))

    found = properties_of(GPU, "NVIDIA H100")

    assert (found.capability, found.num_sms, found.cache_bytes) == ("9.0", 132, 50 * 2**20)
    assert (found.clock_hz, found.memory_clock_hz, found.memory_bus_bits) == (1_980_000_000, 2_619_000_000, 5120)
    assert found.missing == ()


def test_what_nobody_tells_is_none_with_a_reason(torch, monkeypatch):
    torch(hip="6.4", gcnArchName="gfx942:sramecc+:xnack-", memory_bus_width=8192)

    found = properties_of(GPU, "AMD Instinct MI300X")

    assert found.capability == "gfx942"
    assert (found.clock_hz, found.memory_clock_hz, found.memory_bus_bits) == (None, None, 8192)
    assert found.missing == tuple(
        f"neither torch nor its driver tells {name}" for name in ("clock_hz", "memory_clock_hz")
    )


def test_no_driver_is_no_answer():
    assert device_properties._driver(0)(13) == 0  # none on a machine without a GPU; with one, a clock in kHz


@pytest.mark.parametrize("device", [SimpleNamespace(type="cpu", index=None), None])
def test_a_cpu_tells_its_name_and_why_no_more(device):
    found = properties_of(device, "AMD EPYC")

    assert found.device_name == "AMD EPYC"
    assert "no clocks" in found.missing[0]
    assert found.num_sms is None


def test_a_device_in_trouble_raises_nothing(torch):
    torch(raises=True)

    found = properties_of(GPU, "NVIDIA H100")

    assert "CUDA error: unknown" in found.missing[0]
