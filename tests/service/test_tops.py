"""Paging of `top`: every row once, in order, with their number; without it answers are what they are."""

from dataclasses import replace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from taxbreak_vllm.service.http.routes import create_router
from taxbreak_vllm.service.processes.analyzer import Analyzer

NUM_OPS = 60


@pytest.fixture
def client(settings, clock, running):
    app = FastAPI()
    app.include_router(create_router(settings, now_ns=clock))
    return TestClient(app, base_url="http://test/v1/taxbreak/")


@pytest.fixture
def running(spool, make_state):
    spool.put_state(make_state())


@pytest.fixture
def capture_id(client, spool, results, analyze, put, make_state, clock):
    """A request whose two steps are analyzed; the steps a and b have 60 ops each, and 61 together."""

    def analyze_many(capture):
        found = analyze(capture)
        (step,) = found.steps
        first = capture.step_id == "b"
        rows = [replace(step.top[0], op=f"op{n:02}", delta_ft_ns=1000 - n) for n in range(first, NUM_OPS + first)]
        step = replace(step, top=tuple(rows))
        return replace(found, steps=(step,), total=replace(step, name=None))

    capture_id = client.post("captures", json={"steps": 2}).json()["id"]
    put("a", capture_id=capture_id)
    put("b", capture_id=capture_id)
    Analyzer(spool, results, analyze_many, retention_ns=86400 * 10**9, now_ns=clock).turn()
    return capture_id


def ops(step):
    return [row["op"] for row in step["top"]]


def test_pages_of_a_window_hold_every_row_once_the_dearest_first(client, capture_id):
    pages = [
        client.get("breakdown", params={"top_limit": 25, "top_offset": offset}).json()["total"]
        for offset in (0, 25, 50)
    ]

    assert [len(page["top"]) for page in pages] == [25, 25, 11]
    assert {page["num_top"] for page in pages} == {NUM_OPS + 1}
    listed = [op for page in pages for op in ops(page)]
    assert sorted(listed) == [f"op{n:02}" for n in range(NUM_OPS + 1)]
    assert listed[:2] == ["op01", "op02"]  # of both steps, and so dearer than op00


def test_steps_listed_in_an_answer_are_cut_alike(client, capture_id):
    steps = client.get("breakdown", params={"top_limit": 2, "top_offset": 1}).json()["steps"]

    assert {step["name"]: ops(step) for step in steps} == {"a": ["op01", "op02"], "b": ["op02", "op03"]}
    assert {step["num_top"] for step in steps} == {NUM_OPS}


def test_one_step_and_a_capture_have_pages_too(client, capture_id):
    step = client.get("steps/a", params={"top_limit": 1}).json()
    captured = client.get(f"captures/{capture_id}", params={"top_limit": 1}).json()["breakdown"]

    assert ops(step["total"]) == ops(step["steps"][0]) == ["op00"]
    assert step["total"]["num_top"] == NUM_OPS
    assert (ops(captured["total"]), captured["total"]["num_top"]) == (["op01"], NUM_OPS + 1)


def test_without_paging_answers_have_what_they_had(client, capture_id):
    window, step = client.get("breakdown").json(), client.get("steps/a").json()

    assert len(window["total"]["top"]) == 50
    assert len(step["steps"][0]["top"]) == NUM_OPS
    assert "num_top" not in client.get("breakdown").text + client.get("steps/a").text
    assert "num_top" not in client.get(f"captures/{capture_id}").text


@pytest.mark.parametrize(
    ("query", "num"),
    [({"top_offset": 58}, 3), ({"top_offset": 61}, 0), ({"top_limit": 0}, 0), ({"top_limit": 1000}, 61)],
)
def test_a_page_may_be_open_at_either_end_or_empty(client, capture_id, query, num):
    total = client.get("breakdown", params=query).json()["total"]

    assert (len(total["top"]), total["num_top"]) == (num, NUM_OPS + 1)


@pytest.mark.parametrize("query", ["top_limit=-1", "top_limit=1001", "top_offset=x", "top_offset=-1", "top=1"])
@pytest.mark.parametrize("path", ["breakdown", "steps/a", "captures/a"])
def test_a_page_that_cannot_be_is_a_problem(client, path, query):
    assert client.get(f"{path}?{query}").status_code == 422


def test_a_window_without_steps_has_no_rows(client):
    total = client.get("breakdown", params={"top_limit": 5}).json()["total"]

    assert total.get("top", []) == []
    assert total["num_top"] == 0
