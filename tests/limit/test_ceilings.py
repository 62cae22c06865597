"""Ceilings: measured before properties before what makers state; none for a device that nothing is known of."""

import pytest

from taxbreak_vllm.limit.ceilings import DEVICES, DeviceProperties, ceilings_of, stated
from taxbreak_vllm.model.limit import Ceilings, CeilingSource, Work

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("name", "bf16_tflops", "gigabytes"),
    [
        (H100, 989.4, 3352),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA H100 NVL", 835, 3938),
        ("NVIDIA H200", 989.4, 4800),
        ("NVIDIA GH200 480GB", 989.4, 4000),
        ("NVIDIA H20", 148, 4000),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("NVIDIA A100 80GB PCIe", 312, 1935),
        ("NVIDIA B200", 2250, 8000),
        ("NVIDIA GB200", 2500, 8000),
        ("NVIDIA B300 SXM6 AC", 2250, 8000),
        ("AMD Instinct MI300X", 1307.4, 5300),
        ("AMD Instinct MI355X", 2516.6, 8000),
    ],
)
def test_a_device_is_found_by_its_name(name, bf16_tflops, gigabytes):
    found = stated(name)

    assert found.source is CeilingSource.TABLE
    assert found.flops_per_s["bf16"] == pytest.approx(bf16_tflops * 1e12)
    assert found.bytes_per_s == pytest.approx(gigabytes * 1e9)
    assert "datasheet" in found.origin


def test_half_precision_is_not_what_a_v100_makes_of_bfloat16():
    assert "bf16" not in stated("Tesla V100-SXM2-32GB").flops_per_s


@pytest.mark.parametrize("name", ["", "AMD EPYC 7763", "NVIDIA GeForce RTX 4090", "a device of tomorrow"])
def test_of_an_unknown_device_nothing_is_told(name):
    assert ceilings_of(name) is None


def test_what_was_measured_goes_before_properties_and_these_before_the_table():
    measured = Ceilings(device_name=H100, source=CeilingSource.MEASURED, bytes_per_s=3e12)
    properties = DeviceProperties(device_name=H100, memory_clock_hz=2.619e9, memory_bus_bits=5120)

    assert ceilings_of(H100, measured=measured, properties=properties) is measured
    assert ceilings_of(H100, properties=properties).source is CeilingSource.DEVICE
    assert ceilings_of(H100, properties=DeviceProperties(device_name=H100)).source is CeilingSource.TABLE


@pytest.mark.parametrize(
    ("name", "capability", "num_sms", "clock_hz", "memory_clock_hz", "bits"),
    [
        (H100, "9.0", 132, 1.83e9, 2.619e9, 5120),
        ("NVIDIA A100-SXM4-80GB", "8.0", 108, 1.41e9, 1.593e9, 5120),
    ],
)
def test_properties_come_to_what_the_maker_states(name, capability, num_sms, clock_hz, memory_clock_hz, bits):
    found = DeviceProperties(
        device_name=name,
        capability=capability,
        num_sms=num_sms,
        clock_hz=clock_hz,
        memory_clock_hz=memory_clock_hz,
        memory_bus_bits=bits,
    ).ceilings()

    for dtype in ("bf16", "fp16", "tf32"):
        assert found.flops_per_s[dtype] == pytest.approx(stated(name).flops_per_s[dtype], rel=0.01)
    assert found.bytes_per_s == pytest.approx(stated(name).bytes_per_s, rel=0.01)


def test_a_type_without_a_ceiling_has_no_least_time():
    found = stated("NVIDIA A100-SXM4-80GB")

    assert found.compute_ns(Work(10**12, 0, "fp8", is_matrix=True)) is None
    assert found.compute_ns(Work(312 * 10**9, 0, "bf16", is_matrix=True)) == pytest.approx(1e6)
    assert found.compute_ns(Work(0, 100, "fp8")) == 0


def test_each_row_of_the_table_names_its_datasheet():
    text = DEVICES.read_text()

    assert text.count("[[device]]") == text.count("source = ") == text.count("datasheet") > 20
