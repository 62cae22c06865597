"""The live page in a real Chromium on a real vLLM: it shows what the API tells, and a click records steps."""

import shutil
from dataclasses import replace

import httpx
import pytest

from taxbreak_vllm import Breakdown
from taxbreak_vllm.demo.load import send
from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, start_sidecar, start_vllm
from taxbreak_vllm.output.words import duration, percent, ratio
from taxbreak_vllm.spool.spool import Spool

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(600)]

KEY = "secret"


@pytest.fixture(scope="module")
def spool(processes):
    return processes.folder / "spool"


@pytest.fixture(scope="module")
def vllm(processes, tiny_llama, spool, chromium):
    env = {"TAXBREAK_SPOOL": str(spool), "TAXBREAK_SAMPLE_EVERY": "10", "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1"}
    env["TAXBREAK_MAX_STALL_MS"] = "60000"
    return start_vllm(processes, tiny_llama, env=env, flags=(*WORKER_EXTENSION, *ONE_PROCESS))


@pytest.fixture(scope="module")
def sidecar(processes, spool, vllm):
    """A sidecar that has analyzed steps of both phases, and all that were recorded."""
    sidecar = start_sidecar(processes, spool).wait()
    vllm.wait()
    seeds = iter(range(1, 10**6))

    def is_enough():
        send(vllm.url, "tiny-llama", seed=next(seeds))
        return all(breakdown(sidecar, phase).steps for phase in ("prefill", "decode"))

    vllm.process.wait_until(is_enough, "sampled in both phases", timeout_s=180)
    settle(sidecar)
    return sidecar


def get(sidecar, path, **query):
    return httpx.get(f"{sidecar.url}/v1/taxbreak/{path}", params=query, timeout=60.0).raise_for_status()


def breakdown(sidecar, phase):
    return Breakdown.from_json(get(sidecar, "breakdown", phase=phase).content)


def settle(sidecar):
    is_done = lambda: get(sidecar, "status").json()["spool"]["pending"] == 0  # noqa: E731
    sidecar.process.wait_until(is_done, "done with all captures", timeout_s=120)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_it_shows_the_numbers_that_the_api_gives(sidecar, visit, phase):
    told, balance, taxes = None, [], []
    while told != (told := replace(breakdown(sidecar, phase), hdbi_server=None)):  # steps are analyzed meanwhile
        with visit(sidecar.url) as page:
            rows = page.locator(f"tr[data-phase={phase}]").all()
            balance, _, taxes = (row.locator("td").all_inner_texts() for row in rows)
    total, num = told.total, len(told.steps)

    del balance[1]  # the server's HDBI changes with every iteration
    window_ns = total.device.window_ns
    shares = [percent(total.device.active_ns / window_ns), percent(total.device.idle.host_ns / window_ns)]
    assert balance == [
        *(ratio(total.hdbi), "–", *shares),
        *(duration(total.window_ns / num), f"{total.kernels / num:,.0f}", f"{num:,}"),
    ]
    costs = total.taxes
    costs_ns = [costs.delta_ft_ns, costs.delta_ct_ns, 0, costs.orchestration_ns]
    assert taxes == [duration(None if ns is None else ns / num) for ns in costs_ns]


def test_a_click_records_steps_and_their_progress_is_watched(sidecar, vllm, visit, requests_under_way):
    before = {step["step_id"] for step in get(sidecar, "steps").json()["steps"]}
    with visit(sidecar.url) as page, requests_under_way(vllm):
        page.get_by_label("steps", exact=True).fill("3")
        page.get_by_label("phase").first.select_option("decode")
        page.get_by_role("button", name="Record").click()
        page.get_by_role("progressbar").wait_for()
        page.get_by_text("done: 3 of 3 steps recorded and analyzed").wait_for(timeout=90_000)
        page.wait_for_function("document.querySelector('progress').checkVisibility() === false")

        request, *_ = get(sidecar, "captures").json()["captures"]
        after = get(sidecar, "steps", limit=1000).json()["steps"]

    assert (request["status"], request["steps"], request["phase"]) == ("done", 3, "decode")
    recorded = [step for step in after if step["capture_id"] == request["id"]]
    assert [step["phase"] for step in recorded] == ["decode"] * 3
    assert not before & {step["step_id"] for step in recorded}


def test_a_request_for_steps_can_be_taken_back(sidecar, visit):
    with visit(sidecar.url, expected_log=("404",)) as page:  # nobody sends requests, so there is no step to record
        page.get_by_role("button", name="Record").click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("cancelled: 0 of 4 steps").wait_for()


def test_a_step_is_shown_instant_by_instant(sidecar, visit):
    settle(sidecar)
    (newest,) = get(sidecar, "steps", limit=1).json()["steps"]
    with visit(sidecar.url) as page:
        page.locator("[data-timeline]").scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()
        page.get_by_text("there is nothing to fuse").wait_for()

        assert page.locator("[data-steps]").input_value() == newest["step_id"]
        timeline = get(sidecar, f"steps/{newest['step_id']}/timeline").json()
        host = next(lane for lane in timeline["lanes"] if lane["title"] == "host by component")
        own_ns = [
            length
            for length, kind in zip(host["length_ns"], host["kind"], strict=True)
            if host["kinds"][kind] != "engine"
        ]
        assert sum(own_ns) == newest["window_ns"]  # the rest is the engine's, between its two calls
        whole = duration(timeline["window_ns"])
        assert page.locator("[data-range]").inner_text() == f"0.0 µs to {whole} of {whole}"
        assert "compute" in page.locator("[data-timeline-legend]").inner_text()


def test_it_refreshes_by_itself_and_keeps_what_someone_looks_at(sidecar, vllm, visit, requests_under_way):
    with visit(sidecar.url) as page:
        page.locator("[data-timeline]").scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()
        chosen = page.locator("[data-steps]").input_value()
        first = page.locator("#a0-steps tbody tr").first.inner_text()
        with requests_under_way(vllm):
            page.wait_for_function(
                "first => document.querySelector('#a0-steps tbody tr').innerText !== first", arg=first, timeout=60_000
            )

        assert page.locator("[data-steps]").input_value() == chosen
    settle(sidecar)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_is_kept_as_a_picture(sidecar, visit, shoot, scheme, width):
    with visit(sidecar.url, scheme=scheme, width=width) as page:
        page.locator("[data-timeline]").scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()
        shoot(page, f"live-{scheme}-{width}")

        scroll, client = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert scroll <= client


def test_with_a_key_one_logs_in_and_may_do_what_one_may_without(sidecar, processes, spool, visit):
    guarded = start_sidecar(processes, spool, env={"TAXBREAK_API_KEY": KEY}, name="guarded").wait()

    with visit(guarded.url, expected_log=("403", "404")) as page:
        page.get_by_label("key").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("That is not the key.").wait_for()
        page.get_by_label("key").fill(KEY)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="Record").click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("cancelled: 0 of 4 steps").wait_for()
        page.locator("[data-timeline]").scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()

    guarded.process.stop()


def test_without_a_server_the_captures_are_still_shown_and_a_click_says_why_not(sidecar, processes, spool, visit):
    left = processes.folder / "left-by-a-server"  # what a server that ended leaves; the other tests need theirs alive
    shutil.copytree(spool, left, ignore=shutil.ignore_patterns(".*", "*.sqlite3*", "analyzed"))
    copy = Spool(left, max_bytes=2**30, max_captures=10**6)
    for state in copy.states():
        copy.put_state(replace(state, updated_unix_ns=state.updated_unix_ns - 3600 * 10**9))
    alone = start_sidecar(processes, left, name="alone").wait()
    settle(alone)

    with visit(alone.url, expected_log=("503",)) as page:
        page.get_by_role("button", name="Record").click()
        page.get_by_text("no running server records steps into this spool").wait_for()

        assert page.locator("tr[data-phase=decode]").first.is_visible()
    alone.process.stop()
