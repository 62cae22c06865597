"""Ceilings: measured before properties before what makers state; none for a device that nothing is known of."""

import tomllib

import pytest

from taxbreak_vllm.limit.ceilings import DEVICES, ceilings_of, stated
from taxbreak_vllm.model.ceilings import Ceilings, CeilingSource, DeviceProperties, Level, MeasuredCeilings, Rate

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("name", "bf16_tflops", "gigabytes"),
    [
        (H100, 989.4, 3350),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA H200", 989.4, 4800),
        ("NVIDIA H20", 148, 4000),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("NVIDIA A100 80GB PCIe", 312, 1935),
        ("NVIDIA B200", 2250, 8000),
        ("NVIDIA GB200", 2500, 8000),
        ("NVIDIA GB300", 2500, 8000),
        ("NVIDIA B300 SXM6 AC", 2250, 8000),
        ("AMD Instinct MI300X", 1307.4, 5300),
        ("AMD Instinct MI355X", 2516.6, 8000),
    ],
)
def test_a_device_is_found_by_its_name(name, bf16_tflops, gigabytes):
    found = stated(name)

    assert set(found.sources.values()) == {CeilingSource.TABLE}
    assert {*found.flops_per_s, "bytes"} == found.sources.keys()
    assert found.flops_per_s["bf16"] == pytest.approx(bf16_tflops * 1e12)
    assert found.bytes_per_s == pytest.approx(gigabytes * 1e9)
    assert "datasheet" in found.origins[CeilingSource.TABLE]


def test_half_precision_is_not_what_a_v100_makes_of_bfloat16():
    assert "bf16" not in stated("Tesla V100-SXM2-32GB").flops_per_s


OTHERS = (  # alike in name to devices of the table, and other devices
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA H20-3e",
    "NVIDIA H800", "Tesla V100S-PCIE-32GB", "NVIDIA A100-SXM-64GB", "NVIDIA L40", "AMD Instinct MI300A",
)  # fmt: skip


@pytest.mark.parametrize("name", ["", "AMD EPYC 7763", "NVIDIA GeForce RTX 4090", "a device of tomorrow", *OTHERS])
def test_of_an_unknown_device_nothing_is_told(name):
    assert ceilings_of(name) is None


def test_each_figure_is_the_best_known_and_says_where_from():
    reached = MeasuredCeilings(flops_per_s={"bf16": Rate(per_s=700e12, by="torch.mm 8192×8192×8192")})
    properties = DeviceProperties(device_name=H100, memory_clock_hz=2_619_000_000, memory_bus_bits=5120)

    found = ceilings_of(H100, measured=reached, properties=properties)

    assert found.flops_per_s["bf16"] == 700e12
    assert found.bytes_per_s == pytest.approx(2.619e9 * 2 * 5120 / 8)
    assert found.flops_per_s["fp8"] == stated(H100).flops_per_s["fp8"]
    assert {key: found.sources[key].value for key in ("bf16", "bytes", "fp8")} == {
        "bf16": "measured", "bytes": "device", "fp8": "table"
    }  # fmt: skip
    assert found.origins.keys() == set(CeilingSource)


def test_properties_that_tell_nothing_leave_the_table():
    found = ceilings_of(H100, properties=DeviceProperties(device_name=H100))

    assert found == stated(H100)


SETS = {2**20: 9e12, 2**24: 5e12, 2**29: 3e12}


@pytest.mark.parametrize(
    ("num_bytes", "rate"), [(1000, 9e12), (2**20, 9e12), (2**23, 9e12), (2**24, 5e12), (2**28, 5e12), (2**35, 3e12)]
)
def test_bytes_are_held_to_the_working_set_that_is_no_larger_than_they(num_bytes, rate):
    reached = MeasuredCeilings(bytes_per_s={size: Rate(per_s=each, by="copy") for size, each in SETS.items()})

    found = ceilings_of("a device of tomorrow", measured=reached)

    assert found.memory_ns(num_bytes) == pytest.approx(num_bytes / rate * 1e9)
    assert found.of_work([], num_bytes).bytes_per_s == rate
    assert found.bytes_per_s == 3e12


def test_a_larger_set_that_was_faster_bounds_a_smaller_one_too():
    found = Ceilings(device_name="x", bytes_per_s=3e12, by_working_set={2**20: 2e12, 2**29: 3e12})

    assert found.memory_ns(2**20) == pytest.approx(2**20 / 3e12 * 1e9)


def test_of_a_cache_that_was_not_measured_no_bandwidth_is_told():
    found = stated(H100)

    assert found.level(100 * 10**6) is Level.CACHE
    assert found.of_work(["bf16"], 100 * 10**6).bytes_per_s is None
    assert found.of_work(["bf16"], 100 * 10**6).sources == {"bf16": CeilingSource.TABLE}
    assert found.of_work(["bf16"], 101 * 10**6).bytes_per_s == found.bytes_per_s


def test_what_was_reached_once_can_be_reached():
    first = MeasuredCeilings(
        flops_per_s={"bf16": Rate(per_s=5, by="mm"), "fp32": Rate(per_s=2, by="mm")},
        bytes_per_s={1: Rate(per_s=9, by="copy")},
        shortest_kernel_ns=900,
        missing={"fp8": "no kernel"},
        measured_unix_ns=1,
    )
    second = MeasuredCeilings(
        flops_per_s={"bf16": Rate(per_s=4, by="addmm"), "fp8": Rate(per_s=8, by="scaled_mm")},
        bytes_per_s={1: Rate(per_s=10, by="read"), 2: Rate(per_s=3, by="read")},
        missing={"fp4": "not measured"},
        measured_unix_ns=2,
    )

    best = second.raised(first)

    assert {key: (rate.per_s, rate.by) for key, rate in best.flops_per_s.items()} == {
        "bf16": (5, "mm"), "fp32": (2, "mm"), "fp8": (8, "scaled_mm")
    }  # fmt: skip
    assert {key: rate.per_s for key, rate in best.bytes_per_s.items()} == {1: 10, 2: 3}
    assert (best.shortest_kernel_ns, best.missing, best.measured_unix_ns) == (900, {"fp4": "not measured"}, 2)
    assert second.raised(None) is second


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
        clock_hz=round(clock_hz),
        memory_clock_hz=round(memory_clock_hz),
        memory_bus_bits=bits,
    )
    found = ceilings_of(name, properties=found)
    assert found.sources["bf16"] is found.sources["bytes"] is CeilingSource.DEVICE

    for dtype in ("bf16", "fp16", "tf32"):
        assert found.flops_per_s[dtype] == pytest.approx(stated(name).flops_per_s[dtype], rel=0.01)
    assert found.bytes_per_s == pytest.approx(stated(name).bytes_per_s, rel=0.01)


def test_a_type_without_a_ceiling_has_no_least_time():
    found = stated("NVIDIA A100-SXM4-80GB")

    assert found.compute_ns(10**12, "fp8") is None
    assert found.compute_ns(10**12, None) is None
    assert found.compute_ns(312 * 10**9, "bf16") == pytest.approx(1e6)
    assert found.compute_ns(0, "fp8") == 0


@pytest.mark.parametrize(
    "properties",
    [
        # its tensor cores add up in single precision at half the rate of its siblings
        DeviceProperties(device_name="NVIDIA GeForce RTX 4090", capability="8.9", num_sms=128, clock_hz=2_520_000_000),
        # how much of the memory's bandwidth an instance has is not known
        DeviceProperties(
            device_name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", memory_clock_hz=2_619_000_000, memory_bus_bits=5120
        ),
        # how often its memory transfers in a clock is not known
        DeviceProperties(
            device_name="AMD of tomorrow", capability="gfx999", memory_clock_hz=1_300_000_000, memory_bus_bits=8192
        ),
    ],
)
def test_what_does_not_follow_of_properties_is_not_made_up(properties):
    assert ceilings_of(properties.device_name, properties=properties) is None


def test_each_row_of_the_table_names_its_datasheet_and_where_it_was_read():
    rows = tomllib.loads(DEVICES.read_text(encoding="utf-8"))["device"]

    assert len(rows) >= 15
    for row in rows:
        assert "datasheet" in row["source"]
        assert row["read"]
        assert all(page.startswith("http") for page in row["read"])
