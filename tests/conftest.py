"""What several test modules share: they are no package, so it comes as fixtures."""

import importlib.util
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from taxbreak_vllm.decompose import decompose
from taxbreak_vllm.decompose import measure as measure_trace
from taxbreak_vllm.model import Breakdown, Source
from taxbreak_vllm.summary import Measured
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.kineto import Events, read_events
from taxbreak_vllm.trace.steps import find_steps, whole_trace

# A shell that runs us in the background has Ctrl-C ignored, and what we start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

with suppress(ImportError):  # a GPU host may have no more than torch, numpy, pandas and pytest
    from hypothesis import settings

    settings.register_profile("taxbreak", deadline=None, derandomize=True)
    settings.load_profile("taxbreak")


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The slow reference implementation and the builders of made-up traces, `tests/reference.py`."""
    spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rules() -> KernelRules:
    """The packaged rule file."""
    return KernelRules.load()


@pytest.fixture
def read(reference, tmp_path) -> Callable[..., Events]:
    """Write made-up events (builders of `reference`) to a file and read it; keywords stand beside the events."""

    def read(events, **around):
        path = tmp_path / "trace.json"
        path.write_text(reference.to_json(events, **around))
        return read_events(path)

    return read


@pytest.fixture
def measure(read, rules) -> Callable[..., Measured]:
    """Write made-up events to a file and measure them, dispatch by dispatch."""

    def measure(events, *, floor_ns=None):
        columns = read(events)
        windows = find_steps(columns) or [whole_trace(columns)]
        return measure_trace(columns, windows, rules=rules, floor_ns=floor_ns)[0]

    return measure


@pytest.fixture
def analyze(read, rules) -> Callable[..., Breakdown]:
    """Write made-up events to a file and decompose it."""

    def analyze(events, *, floor_ns=None, **around):
        return decompose(read(events, **around), source=Source(), rules=rules, floor_ns=floor_ns)

    return analyze
