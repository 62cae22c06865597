"""The curve over sizes of batches on the live page, in a real Chromium: by eye, on a phone, in the dark, read aloud."""

from dataclasses import replace

import pytest

from taxbreak_vllm.model.breakdown import Breakdown, Calibration, Source
from taxbreak_vllm.model.step import Batch, Phase
from tests.output.page.test_page_js import CONTRASTS, LOOKS, UNNAMED, WIDTHS

CURVE = (
    (1, 8, 0.12, 0.8),
    (2, 9, 0.15, 0.75),
    (4, 9, 0.25, 0.6),
    (8, 11, 0.4, 0.4),
    (16, 280, 0.62, 0.1),
    (32, 600, 0.8, 0),
)


@pytest.fixture
def address(filled, results, make_step, make_info, clock, start_sidecar):
    """The address of the sidecar of a server whose device decides from 16 requests on."""
    for size, tklqt_us, hdbi, waits in CURVE:
        plain = make_step(1000)
        step = replace(
            plain,
            batch=Batch(requests=size, prompt_tokens=0, output_tokens=size),
            tklqt_ns=3_000 * tklqt_us,
            taxes=replace(plain.taxes, delta_kt_ns=21_000),
            hdbi=hdbi,
            device=replace(plain.device, idle=replace(plain.device.idle, host_ns=int(200_000 * waits))),
        )
        found = Breakdown(source=Source(model_name="tiny"), calibration=Calibration(dilation=1.3), steps=(step,))
        info = replace(make_info(f"of-{size}", phase=Phase.DECODE), batch=step.batch)
        results.add_step(f"of-{size}", info, found, now_ns=clock())
    return start_sidecar()


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_the_batch_is_said_drawn_and_listed(visit, shoot, address, scheme, width):
    with visit(address, scheme=scheme, width=width) as page:
        page.get_by_role("heading", name="From which batch on the device decides").wait_for()
        shoot(page, f"transition-{scheme}-{width}")

        words = page.locator("[data-turn=decode]").inner_text()
        assert words.startswith("decode: from 16 requests on the device decides; at 8 requests the host still did.")
        drawn = page.locator("[data-chart=transition]")
        assert drawn.get_attribute("aria-label").startswith("HDBI, waits for the host, TKLQT a launch over 6 sizes of")
        assert drawn.locator("canvas").count() == 1
        rows = page.locator("#a0-transition tbody tr").all_inner_texts()
        assert ["the host" in row for row in rows if "decode" in row] == [True] * 4 + [False] * 2
        scroll, client = page.evaluate(WIDTHS)
        assert scroll <= client
        least, where = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, where
        assert [found for found in page.evaluate(UNNAMED) if not found.startswith("<canvas")] == []  # uPlot's


@pytest.mark.nightly
def test_what_was_recorded_meanwhile_is_drawn_without_a_reload(visit, address, results, make_step, make_info, clock):
    with visit(address) as page:
        page.get_by_text("from 16 requests on the device decides").wait_for()
        step = replace(make_step(1000), batch=Batch(requests=64, prompt_tokens=0, output_tokens=64), hdbi=0.9)
        found = Breakdown(source=Source(model_name="tiny"), steps=(step,))
        results.add_step("of-64", replace(make_info("of-64"), batch=step.batch), found, now_ns=clock())

        page.locator("[data-chart=transition][aria-label*='over 7 sizes']").wait_for()
