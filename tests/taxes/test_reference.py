"""Public traces of real GPUs against figures computed from their raw JSON, there and here."""

import gzip
import json
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.trace.dispatches import link
from taxbreak_vllm.trace.large.cuts import Parts
from taxbreak_vllm.trace.large.spill import open_trace
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.trace.survey import TraceSurvey

REPEAT = Path(__file__).parents[2] / "benchmarks" / "repeat_trace.py"
# Of one step each, so that only their repetition can be cut; the large ones have several.
OF_ONE_STEP = (
    "amd_vllm_prefilldecode_piecewise",
    "b300_sglang_qwen3-30b-a3b_decode_cudagraph",
    "h100_hf_bert-small_infer",
    "h800_deepseek_train",
)
DEVICE_CATEGORIES = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
DEVICE_CATEGORIES |= {"Kernel": "kernel", "Memcpy": "memcpy", "Memset": "memset"}
RUNTIME_CATEGORIES = ("cuda_runtime", "cuda_driver", "Runtime")


class Trace:
    """One file, read twice: by us, and as plain JSON with decimal µs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        figures = json.loads(path.with_name("reference.json").read_text())
        self.expected = figures.get(path.name) or figures[path.name.removesuffix(".gz")]
        with gzip.open(path) as file:
            events = json.load(file, parse_float=Decimal)["traceEvents"]
        whole = [e for e in events if e.get("ph") == "X"]
        self.num_events = len(events)
        self.latest_us = float(max(e["ts"] for e in whole))
        self.calls = {
            e["args"]["correlation"]: e
            for e in whole
            if e.get("cat") in RUNTIME_CATEGORIES and "correlation" in e["args"]
        }
        self.activities = [e for e in whole if e.get("cat") in DEVICE_CATEGORIES]
        self.kernels = [e for e in self.activities if DEVICE_CATEGORIES[e["cat"]] == "kernel"]
        self.events = read_events(path)
        self.breakdown = Recording(self.events).breakdown

    @property
    def linked(self):
        """(kernel, launch) of each kernel that has one."""
        pairs = [(kernel, self.calls.get(kernel["args"].get("correlation"))) for kernel in self.kernels]
        return [(kernel, launch) for kernel, launch in pairs if launch]

    def noise_us(self, num_terms):
        """What a sum of float µs may be off by: a spacing at the timestamps for each difference, and the rounding."""
        return num_terms * math.ulp(self.latest_us) + 0.001


@pytest.fixture(scope="module")
def trace(any_trace_path):
    return Trace(any_trace_path)


def to_ns(us):
    exact = Decimal(us) * 1000
    assert exact == exact.to_integral_value(), "finer than a nanosecond"
    return int(exact)


def union_ns(activities):
    covered, total = -1, 0
    for start, end in sorted((to_ns(a["ts"]), to_ns(a["ts"] + a["dur"])) for a in activities):
        total += max(end - max(start, covered), 0)
        covered = max(covered, end)
    return total


def test_every_event_is_read(trace):
    assert trace.breakdown.coverage.events == trace.num_events == trace.expected["events"]
    assert trace.breakdown.coverage.dropped_events == 0
    assert trace.events.raw_bytes == trace.expected["raw_bytes"]
    assert not trace.events.is_truncated


def test_kernels_are_linked_as_the_reference_has_it(trace):
    coverage, expected = trace.breakdown.coverage, trace.expected

    assert (coverage.kernels, coverage.linked) == (expected["kernels"], expected["linked"])
    assert coverage.kernel_launches == expected["unique_launches"]
    assert coverage.unlinked == expected["kernels"] - expected["linked"]
    assert coverage.activities == len(trace.activities)


def test_sums_equal_decimal_arithmetic_on_the_raw_text_to_the_nanosecond(trace):
    _, activities, dispatches = link(trace.events)
    launches = {id(launch): launch for _, launch in trace.linked}
    first = {}
    for kernel, launch in trace.linked:
        first[id(launch)] = min(first.get(id(launch), kernel["ts"]), kernel["ts"])
    total = trace.breakdown.total
    of_kernels = dispatches.num_kernels > 0

    assert total.tklqt_per_kernel_ns == sum(to_ns(kernel["ts"] - launch["ts"]) for kernel, launch in trace.linked)
    assert total.tklqt_ns == sum(to_ns(ts - launches[key]["ts"]) for key, ts in first.items())
    assert total.device.kernel_sum_ns == sum(to_ns(kernel["dur"]) for kernel in trace.kernels)
    call_ns = (dispatches.return_ns - dispatches.launch_ns)[of_kernels]
    assert int(call_ns.sum()) == sum(to_ns(launch["dur"]) for launch in launches.values())
    assert total.device.active_ns == union_ns(trace.activities)
    assert int((activities.end_ns - activities.start_ns).sum()) == sum(to_ns(a["dur"]) for a in trace.activities)


def test_sums_agree_with_the_reference_within_its_float_noise(trace):
    total, expected = trace.breakdown.total, trace.expected
    num_linked, num_launches = expected["linked"], expected["unique_launches"]
    negative = [kernel for kernel, launch in trace.linked if kernel["ts"] < launch["ts"]]
    launches = {id(launch): launch for _, launch in trace.linked}.values()

    assert total.tklqt_per_kernel_ns / 1000 == pytest.approx(
        expected["tklqt_us"], rel=1e-15, abs=trace.noise_us(num_linked)
    )
    assert total.device.kernel_sum_ns / 1000 == pytest.approx(expected["kernel_us"], rel=1e-12, abs=0.001)
    assert float(sum(launch["dur"] for launch in launches)) == pytest.approx(
        expected["unique_launch_cpu_us"], rel=1e-12, abs=0.001
    )
    assert len(launches) == num_launches
    assert len(negative) == expected["negative"]


def test_the_device_is_as_busy_as_hta_says_where_hta_looks_at_all_of_it(trace):
    busy = trace.expected["hta_ns"]["temporal"]
    linked = [a for a in trace.activities if a["args"].get("correlation") in trace.calls]
    if trace.path.name.startswith("b200"):
        pytest.skip("HTA's compute time here is above the sum of all compute kernels: 10844.4 of 10841.0 µs")

    # HTA drops what has no launch event (a100: 872 activities); we never do, so the unions are compared without them.
    assert union_ns(linked) / 1000 == pytest.approx(
        busy["compute_time(us)"] + busy["non_compute_time(us)"], abs=trace.noise_us(2 * len(linked))
    )
    assert trace.breakdown.total.device.active_ns >= union_ns(linked)


def test_measured_in_parts_it_is_the_same_to_the_byte(trace):
    with open_trace(trace.path, spill_above_bytes=0, rows_per_part=500) as spilled:
        in_parts = Recording(spilled).breakdown

    assert in_parts.to_json() == trace.breakdown.to_json()


@pytest.mark.parametrize("name", OF_ONE_STEP)
def test_events_three_times_over_measured_in_parts_are_the_same_to_the_byte(real_trace, name, tmp_path):
    path = tmp_path / "three.json"
    subprocess.run([sys.executable, REPEAT, real_trace(name), path, "3"], check=True)
    with open_trace(path, spill_above_bytes=0, rows_per_part=500) as spilled:
        num_parts = _num_parts(spilled)
        in_parts = Recording(spilled).breakdown

    assert num_parts > 1
    assert in_parts.to_json() == Recording(read_events(path)).breakdown.to_json()


def _num_parts(spilled):
    with Parts(spilled, TraceSurvey.of(spilled.head, spilled.chunks())) as parts:
        return sum(1 for _ in parts)


def test_every_nanosecond_of_every_step_is_accounted_for(trace):
    for step in (*trace.breakdown.steps, trace.breakdown.total):
        host, device, idle, exposed = step.host, step.device, step.device.idle, step.exposed
        parts = (host.python_ns, host.dispatch_ns, host.library_ns, host.launch_ns, host.runtime_ns, host.blocked_ns)
        assert sum(parts) == step.window_ns
        assert device.active_ns + device.other_active_ns + device.idle_ns == device.window_ns
        assert idle.host_ns + idle.blocked_ns + idle.queue_ns + idle.edge_ns == device.idle_ns
        exposed_parts = (exposed.delta_ft_ns, exposed.delta_ct_ns, exposed.delta_kt_ns, exposed.other_ns)
        assert sum(exposed_parts) == idle.host_ns
        causes = (idle.host_ns, idle.blocked_ns, idle.queue_ns, idle.edge_ns)
        assert min(*parts, *exposed_parts, *causes, device.active_ns, device.other_active_ns) >= 0


def test_the_trace_cut_out_of_a_larger_one_is_what_its_script_makes(real_trace, tmp_path):
    cut = real_trace("a100_hta_graphs_step551")
    made = tmp_path / "cut.json.gz"
    script = Path(__file__).parents[1] / "data" / "cut_trace.py"

    whole = real_trace("a100_hta_negqueue_infer_graph")
    subprocess.run([sys.executable, script, whole, "ProfilerStep#551", made], check=True)

    assert gzip.decompress(made.read_bytes()) == gzip.decompress(cut.read_bytes())
