"""What several test modules share: they are no package, so it comes as fixtures."""

import gc
import importlib.util
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
from command_line import CommandLine

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Environment, Floor, FloorKind, Floors, Spread
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.taxes.measured import Measured
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.events import Events
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.read.kineto import read_events

# Three small ones are kept here; more may lie beside the checkout.
TRACE_FOLDERS = (Path(__file__).parents[2] / "shared" / "traces", Path(__file__).parent / "data" / "traces")
REAL_TRACES = {path.name: path for folder in TRACE_FOLDERS for path in sorted(folder.glob("*.json.gz"))}
LARGE_BYTES = 500_000

# Folders with files that take many seconds, as they start processes or try much.
LONG = tuple(f"tests/{folder}/" for folder in ("replay", "service", "doctor", "rig", "taxes", "deploy", "cases"))
WITH_VLLM = ("tests/e2e", "tests/serving/frontend")

# A shell that runs us in the background has Ctrl-C ignored, and what we start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

with suppress(ImportError):  # a GPU host may have no more than torch, numpy, pandas and pytest
    from hypothesis import settings
    from trials import trials

    settings.register_profile("taxbreak", trials(100), deadline=None, derandomize=True)
    settings.load_profile("taxbreak")


def pytest_collection_modifyitems(items):
    """Begin with what needs a vLLM, then with the longest files, so that two processes end at the same time."""
    items.sort(key=lambda item: (item.get_closest_marker("e2e") is None, not item.nodeid.startswith(LONG)))


def pytest_collection_finish():
    """Keep what was imported, torch among it, out of each later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give a worker whole files, and all of a folder that needs a vLLM, which takes long to import.

    At night, when most files are of such a folder, they are dealt out like any other.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            folder = file.rpartition("/")[0]
            return folder if folder in WITH_VLLM and config.option.markexpr == "not nightly" else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def taxbreak() -> Iterator[CommandLine]:
    """Run `taxbreak` with these arguments; gives its exit status and what it printed."""
    command_line = CommandLine()
    yield command_line
    command_line.close()


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


def _when(path: Path) -> list[pytest.MarkDecorator]:
    return [pytest.mark.nightly] if path.stat().st_size > LARGE_BYTES else []


@pytest.fixture(
    scope="module", params=[pytest.param(path, id=name, marks=_when(path)) for name, path in REAL_TRACES.items()]
)
def trace_path(request) -> Path:
    """Each recorded trace of a real GPU that is here; the large ones, of seconds each, at night."""
    return request.param


@pytest.fixture(scope="module", params=REAL_TRACES.values(), ids=REAL_TRACES)
def any_trace_path(request) -> Path:
    """Each of them at each change."""
    return request.param


@pytest.fixture(scope="session")
def real_trace() -> Callable[[str], Path]:
    """The recorded trace of a name; the test is skipped where it is not beside the checkout."""

    def real_trace(name):
        file = name if name.endswith(".json.gz") else f"{name}.json.gz"
        if file not in REAL_TRACES:
            pytest.skip(f"{file} is not beside this checkout (../shared/traces)")
        return REAL_TRACES[file]

    return real_trace


@pytest.fixture
def put_graph_floors() -> Callable[[Path], None]:
    """Put into a store what launching graphs costs on the H100 of the trace of bert-small."""

    def put(path):
        here = Environment(device_type="cuda", device_name="NVIDIA H100 80GB HBM3", torch="2.13", driver="12090")
        measured = ((1, 7_700), (8, 8_400), (64, 14_000), (512, 58_000))
        graphs = (Floor(kind=FloorKind.GRAPH, spread=Spread(ns, 10, 50), nodes=nodes) for nodes, ns in measured)
        with Baselines(path) as store:
            store.put_floors(here, Floors(floors=tuple(graphs)))

    return put


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
        return Recording(read(events), Terms(rules=rules, floor_ns=floor_ns)).measured

    return measure


@pytest.fixture
def analyze(read, rules) -> Callable[..., Breakdown]:
    """Write made-up events to a file and decompose it."""

    def analyze(events, *, floor_ns=None, **around):
        return Recording(read(events, **around), Terms(rules=rules, floor_ns=floor_ns)).breakdown

    return analyze


# Of the module: while it is open, playwright's event loop runs in this thread, and other tests want their own.
@pytest.fixture(scope="module")
def chromium():
    """The system's own Chromium, headless; none is downloaded."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: sh scripts/system_packages.sh chromium")
    with sync_api.sync_playwright() as playwright:
        # A container's root may not make the namespaces that the sandbox wants.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a page; at the end it must have asked no other host and logged nothing."""

    @contextmanager
    def visit(url, *, scheme="light", width=1280, height=900, expected_log=(), **context):
        page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **context)
        page.set_default_timeout(90_000)  # of a busy machine
        said, hosts = [], set()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        try:
            page.goto(url)
            yield page
        finally:
            page.close()
        assert [line for line in said if not any(part in line for part in expected_log)] == []
        assert hosts <= {urlsplit(url).netloc, ""}  # "" is data: and a file

    return visit


@pytest.fixture(scope="session")
def shoot():
    """Keep a picture of the whole page: CI keeps the folder."""
    folder = Path(__file__).parents[1] / "artifacts" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)
