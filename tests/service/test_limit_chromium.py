"""The bar to the hardware's limit in a real Chromium: its colours, its legend, its words for a screen reader."""

from dataclasses import replace

import pytest

from taxbreak_vllm.model.breakdown import Breakdown, Source
from taxbreak_vllm.model.ceilings import Ceilings, CeilingSource
from taxbreak_vllm.model.limit import Bar, Bound, StepLimit
from tests.output.page.test_page_js import CONTRASTS, UNNAMED, WIDTHS

EXPOSED = {"delta_ft": 20, "delta_ct": 10, "delta_kt": 10, "other": 5, "engine": 5}
BAR = Bar(window_ns=200, limit_ns=60, above_ns=50, exposed_ns=EXPOSED, other_idle_ns=25, unknown_ns=15)

H100 = Ceilings(
    device_name="NVIDIA H100 80GB HBM3",
    sources={"bf16": CeilingSource.TABLE, "bytes": CeilingSource.TABLE},
    origins={CeilingSource.TABLE: "NVIDIA H100 datasheet (SXM)"},
)


@pytest.fixture
def limited(filled, results, make_info, make_step, clock, start_sidecar):
    """The address of the sidecar of a server of whose decode steps each part of the bar is seen."""
    limit = StepLimit(
        flops=10, bytes=5, bar=BAR, compute_ns=20, memory_ns=60, floor_ns=(60, 60), bound=Bound.MEMORY,
        mfu=0.1, mbu=0.3, ceilings=H100,
    )  # fmt: skip
    breakdown = Breakdown(source=Source(), steps=(replace(make_step(), limit=limit),))
    results.add_step("limited", make_info("limited"), breakdown, now_ns=clock())
    return start_sidecar()


def test_each_part_of_the_bar_has_a_colour_a_word_and_can_be_reached(visit, shoot, limited):
    fills = "svg => [...svg.querySelectorAll('rect')].map(r => getComputedStyle(r).fill)"
    with visit(limited, width=390) as page:
        page.get_by_role("heading", name="How far from the hardware's limit?").wait_for()
        section = page.locator("#a0-limit")
        shoot(page, "limit")
        bar = section.locator("tr[data-phase=decode] svg.bar")
        colours, words = bar.evaluate(fills), bar.get_attribute("aria-label")
        legend = section.locator(".legend li").all_inner_texts()
        region = page.get_by_role("region", name="To the hardware's limit")
        region.focus()
        focused = page.evaluate("document.activeElement.ariaLabel")
        scroll, client = page.evaluate(WIDTHS)
        least, where = page.evaluate(CONTRASTS)[0]
        unnamed = [found for found in page.evaluate(UNNAMED) if not found.startswith("<canvas")]

    assert len(set(colours)) == len(colours) == len(BAR.parts_ns()) == len(legend)
    assert "rgb(0, 0, 0)" not in colours
    assert all(word in words for word in legend)
    assert focused == "To the hardware's limit"
    assert scroll <= client
    assert least >= 4.5, where
    assert unnamed == []
