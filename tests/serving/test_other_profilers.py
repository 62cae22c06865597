import sys
from types import SimpleNamespace

import pytest

from taxbreak_vllm.machine.injected import injected_profiler
from taxbreak_vllm.serving.other_profilers import is_profiler_running
from taxbreak_vllm.serving.torch_profile import TorchProfile

pytest.importorskip("torch")


class _Worker:
    def __init__(self, **profiler):
        self.profiler = SimpleNamespace(**profiler) if profiler else None


def test_a_torch_profiler_of_somebody_else_is_seen():
    assert not is_profiler_running(_Worker())

    theirs = TorchProfile("theirs")
    theirs.start()
    try:
        assert is_profiler_running(_Worker())
    finally:
        theirs.stop()

    assert not is_profiler_running(_Worker())


@pytest.mark.parametrize("flag", ["is_running", "_active", "has_cuda_graph_session"])
def test_vllms_profiler_is_seen_running_waiting_to_and_keeping_a_session(flag):
    idle = {"is_running": False, "_active": False, "has_cuda_graph_session": False}

    assert not is_profiler_running(_Worker(**idle))
    assert is_profiler_running(_Worker(**idle | {flag: True}))


def test_proton_is_seen_from_its_start_on(monkeypatch):
    flags = SimpleNamespace(profiling_on=False)
    monkeypatch.setitem(sys.modules, "triton.profiler.flags", SimpleNamespace(flags=flags))
    assert not is_profiler_running(_Worker())

    flags.profiling_on = True

    assert is_profiler_running(_Worker())


def test_protons_flag_is_where_it_is_looked_for():
    flags = pytest.importorskip("triton.profiler.flags", exc_type=ImportError).flags

    assert flags.profiling_on is False


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        ({"PATH": "/usr/bin", "CUDA_INJECTION64_PATH": ""}, None),
        ({"CUDA_INJECTION64_PATH": "/opt/nsight/libToolsInjection64.so"}, "CUDA_INJECTION64_PATH"),
        ({"NVTX_INJECTION64_PATH": "/usr/lib/libcupti.so"}, "NVTX_INJECTION64_PATH"),
        ({"NSYS_PROFILING_SESSION_ID": "17"}, "NSYS_PROFILING_SESSION_ID"),
        ({"NV_NSIGHT_INJECTION_PORT_BASE": "49152"}, "NV_NSIGHT_INJECTION_PORT_BASE"),
        ({"ROCP_TOOL_LIBRARIES": "/opt/rocm/lib/librocprofiler-sdk-tool.so"}, "ROCP_TOOL_LIBRARIES"),
        ({"HSA_TOOLS_LIB": "librocprofiler64.so.1"}, "HSA_TOOLS_LIB"),
    ],
)
def test_a_tool_that_started_this_process_is_known_by_what_it_set(environ, found):
    assert injected_profiler(environ) == found
