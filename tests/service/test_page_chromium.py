"""The live page of a server as it might be, in a real Chromium: its sentence, its bars, on a phone and in the dark."""

from dataclasses import replace

import pytest
from live_states import engine_state, frontend_state, waterfall

from taxbreak_vllm.model.engine import Between, EnginePart
from tests.output.page.test_page_js import CONTRASTS, LOOKS, UNNAMED, WIDTHS

LATER_NS = 3600 * 10**9  # so that the server runs as long as the test does


@pytest.fixture
def slow_tokenizer(filled, spool, clock, start_sidecar):
    """The address of the sidecar of a server whose tokenizer is slow."""
    state = engine_state(
        exposed={part: 0.1 for part in EnginePart} | {EnginePart.SCHEDULE: 0.5},
        between={cause: 0.3 for cause in Between} | {Between.NO_WORK: 2},
    )
    spool.put_engine_state(replace(state, updated_unix_ns=clock() + LATER_NS))
    requests = [
        waterfall(number * 0x1234567, started_unix_ns=clock(), render=41, decode=100 + number % 20)
        for number in range(100)
    ]
    spool.put_frontend_state(replace(frontend_state(*requests), updated_unix_ns=clock() + LATER_NS))
    spool.put_waterfalls("vllm-a", "0", requests)
    return start_sidecar()


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_a_slow_tokenizer_is_said_first_and_everything_can_be_read(visit, shoot, slow_tokenizer, scheme, width):
    with visit(slow_tokenizer, scheme=scheme, width=width) as page:
        page.get_by_role("heading", name="What requests wait for").wait_for()
        shoot(page, f"server-{scheme}-{width}")

        first = page.locator("main p").first.inner_text()
        assert first.startswith("Requests wait 41.00 ms of the 61.90 ms to their first token in the tokenizer (render)")
        scroll, client = page.evaluate(WIDTHS)
        assert scroll <= client
        least, where = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, where
        assert [found for found in page.evaluate(UNNAMED) if not found.startswith("<canvas")] == []  # uPlot's


@pytest.mark.nightly
def test_the_bars_have_colours_of_their_own_and_as_many_parts_as_the_legend(visit, slow_tokenizer):
    fills = "svg => [...svg.querySelectorAll('rect')].map(r => getComputedStyle(r).fill)"
    with visit(slow_tokenizer) as page:
        bar = page.locator("#a0-requests svg.bar").first
        colours = bar.evaluate(fills)
        legend = page.locator("#a0-requests .legend li").all_inner_texts()
        black = [c for c in colours[:-1] if c == "rgb(0, 0, 0)"]
        second = page.locator("#a0-second svg.bar").first.evaluate(fills)

    assert len(colours) == len(legend) + 1  # and the mark
    assert black == []
    assert "rgb(0, 0, 0)" not in second


@pytest.mark.nightly
def test_it_refreshes_and_says_what_is_true_then(visit, slow_tokenizer, spool, clock):
    with visit(slow_tokenizer) as page:
        page.get_by_text("Requests wait 41.00 ms").wait_for()
        spool.put_waterfalls("vllm-a", "0", [])
        spool.put_frontend_state(replace(frontend_state(), updated_unix_ns=clock() + LATER_NS))  # begins anew

        page.get_by_text("No request has ended yet.").wait_for()


@pytest.mark.nightly
def test_a_card_holds_its_longest_word(visit, filled, spool, clock, start_sidecar):
    """Three of them stand side by side, and what would refute one is a query for Prometheus."""
    state = engine_state(exposed={EnginePart.LOOP: 0.1}, between={Between.IPC_RETURN: 5}, worker_ms=2)
    spool.put_engine_state(replace(state, updated_unix_ns=clock() + LATER_NS))
    with visit(start_sidecar(), width=1200) as page:
        card = page.locator(".card", has_text="taxbreak_idle_between_steps_seconds_total{cause=~'ipc_.*'}").first
        card.wait_for()

        assert card.evaluate("card => [...card.children].filter(part => part.scrollWidth > part.clientWidth)") == []
