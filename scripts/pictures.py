"""Take the pictures of docs/images anew in the system's own Chromium, from real data; `make pictures`.

In: a trace of a B200, from which `step.png` and `page.png` are made, and for `live.png` either a running sidecar
(`--url`) or a tiny model on a real vLLM under load, which is started for it. Out: PNGs of twice the pixels, in 256
colours.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from taxbreak_vllm.demo.load import send
from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import start_sidecar, start_vllm
from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.output.html import HtmlPage
from taxbreak_vllm.taxes.recording import Recording

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
TRACE = ROOT.parent / "shared" / "traces" / "b200_vllm_eager_infer.json.gz"
SAMPLING = {"TAXBREAK_SAMPLE_EVERY": "8", "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1", "TAXBREAK_MAX_STALL_MS": "1000"}
NUM_REQUESTS = 200  # before the picture: one in 64 is followed closely
PATIENCE_S = 900.0
WIDTH = 1200

# Of the page of a trace: its sentence, the bars of its step and the timeline below them.
_BARS_ALONE = """() => {
  const shown = "#a0-balance, [data-timeline]";
  for (const section of document.querySelectorAll("#a0 > section")) section.hidden = !section.matches(shown);
  const [bars, next] = document.querySelectorAll("#a0-balance h3");
  let isShown = false;
  for (const part of document.getElementById("a0-balance").children) {
    if (part === bars || part === next) isShown = part === bars;
    part.hidden = !isShown;
  }
}"""


def main() -> None:
    """Take all pictures, or those named."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("pictures", nargs="*", metavar="PICTURE", help="step, page or live; all unless named")
    words.add_argument("--trace", type=Path, default=TRACE)
    words.add_argument("--url", help="a sidecar whose page is to be live.png")
    given = words.parse_args()
    wanted = set(given.pictures) or {"step", "page", "live"}
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        if wanted & {"step", "page"}:
            with _trace_page(browser, given.trace) as page:
                if "page" in wanted:
                    _shoot(page, "page", "#a0-balance", "#a0 [data-timeline-legend]")
                if "step" in wanted:
                    page.evaluate(_BARS_ALONE)
                    _shoot(page, "step", "#a0-h", "#a0 .lanes")
        if "live" in wanted:
            with _sidecar(given.url) as url, _visit(browser, url, scheme="dark") as page:
                _shoot(page, "live", "#a0-h", "#a0-requests .legend")
        browser.close()


def _shoot(page: Page, name: str, first: str, last: str) -> None:
    """Keep what lies between two elements, both included."""
    top, bottom = page.locator(first).first.bounding_box(), page.locator(last).first.bounding_box()
    assert top is not None
    assert bottom is not None
    y = max(0, top["y"] - 16)
    clip = {"x": 0, "y": y, "width": WIDTH, "height": bottom["y"] + bottom["height"] + 4 - y}
    image = Image.open(BytesIO(page.screenshot(full_page=True, clip=clip)))
    image.convert("RGB").quantize(256).save(IMAGES / f"{name}.png", optimize=True)
    sys.stdout.write(f"{IMAGES / name}.png: {image.width} × {image.height}\n")


@contextmanager
def _visit(browser: Browser, url: str, *, scheme: str) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": WIDTH, "height": 900},
        color_scheme=scheme,
        device_scale_factor=2,
    )
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()


@contextmanager
def _trace_page(browser: Browser, trace: Path) -> Iterator[Page]:
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "page.html"
        with Recording.open(trace, with_frames=True) as recording:
            html = HtmlPage()
            html.add(Findings(recording))
            html.write(document)
        with _visit(browser, document.as_uri(), scheme="light") as page:
            yield page


@contextmanager
def _sidecar(url: str | None) -> Iterator[str]:
    """Give the address of a sidecar, if need be of one over a vLLM that is started and under load as long."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="tb-") as name, Processes(Path(name)) as processes:
        folder = Path(name)
        sidecar = start_sidecar(processes, folder / "spool").wait()
        env = SAMPLING | {"TAXBREAK_SPOOL": str(folder / "spool"), "VLLM_PLUGINS": "taxbreak"}
        vllm = start_vllm(processes, write_tiny_llama(folder / "tiny-llama"), flags=(), env=env).wait()
        sys.stdout.write(f"{vllm.url} is up\n")
        is_over = threading.Event()

        def load() -> None:
            for seed in count(1):
                if is_over.is_set():
                    return
                send(vllm.url, "tiny-llama", seed=seed)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            _wait_until_telling(sidecar.url)
            yield sidecar.url
        finally:
            is_over.set()
            thread.join()


def _wait_until_telling(url: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        answer = httpx.get(f"{url}/v1/taxbreak/requests", timeout=30)
        servers = answer.json().get("api_servers", [])
        num = sum(server["total"]["num"] for server in servers)
        verdict = httpx.get(f"{url}/v1/taxbreak/advice", timeout=30).json()["verdict"]
        if num >= NUM_REQUESTS and verdict == "act":
            return
        time.sleep(5)
    sys.stderr.write(f"{url}: after {PATIENCE_S:.0f} s the page is as it is\n")


if __name__ == "__main__":
    main()
