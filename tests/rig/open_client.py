"""Requests that come when they come, answered or not: `draw` makes a plan of them, `serve` has servers answer it.

Gaps are drawn from a gamma distribution (shape 1 is Poisson, less is bursty). Prompts are token ids, drawn anew each
time a plan is played, so that no prefix cache knows them; answers are streamed. What requests took is what their server
tells.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

import aiohttp  # vLLM has it
import numpy as np

from taxbreak_vllm.demo.servers import RunningServer
from taxbreak_vllm.stages.rows import Column
from taxbreak_vllm.workload.frontend import request_rows
from taxbreak_vllm.workload.recording import read_apis

_TOKENS = range(5, 261)


class Asked(NamedTuple):
    """A request: when it comes, from the first one on, and how many tokens it and its answer have."""

    at_s: float
    num_prompt_tokens: int
    num_outputs: int


def draw(
    *,
    seconds: float,
    rate: float | Callable[[float], float],
    shape: float = 1.0,
    seed: int = 1,
    prompts: tuple[int, int] = (8, 240),
    outputs: tuple[int, int] = (4, 60),
) -> list[Asked]:
    """Plan requests of so many seconds; `rate` is how many come in one, or tells it of an instant."""
    source, at_s, plan = random.Random(seed), 0.0, []
    while at_s < seconds:
        plan.append(Asked(at_s, source.randint(*prompts), source.randint(*outputs)))
        at_s += source.gammavariate(shape, 1 / (rate(at_s) if callable(rate) else rate) / shape)
    return plan


def serve(servers: Sequence[tuple[RunningServer, Path]], model: str, plan: Sequence[Asked], *, seed: str) -> np.ndarray:
    """Ask servers in turn what was planned; return what their API servers kept of it (requests, columns of `Column`).

    A server goes with its spool. Raises what aiohttp raises.
    """
    begin_ns, found = monotonic_ns(), np.zeros((0, len(Column)), dtype=np.int64)
    asyncio.run(_play([server.url for server, _ in servers], model, plan, seed=seed))

    def is_kept() -> bool:
        nonlocal found
        rows = np.concatenate([request_rows(read_apis(spool)) for _, spool in servers])
        found = rows[rows[:, Column.ARRIVED] >= begin_ns]
        return len(found) >= len(plan)

    servers[0][0].process.wait_until(is_kept, "done with keeping requests", timeout_s=60)
    return found


async def _play(urls: Sequence[str], model: str, plan: Sequence[Asked], *, seed: str) -> None:
    source, pending = random.Random(seed), []
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        begin = asyncio.get_running_loop().time()
        for number, request in enumerate(plan):
            asked = {
                "model": model,
                "prompt": source.choices(_TOKENS, k=request.num_prompt_tokens),
                "max_tokens": request.num_outputs,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            await asyncio.sleep(max(0.0, begin + request.at_s - asyncio.get_running_loop().time()))
            pending.append(asyncio.create_task(_ask(session, urls[number % len(urls)], asked)))
        await asyncio.gather(*pending)


async def _ask(session: aiohttp.ClientSession, url: str, asked: dict[str, object]) -> None:
    async with session.post(f"{url}/v1/completions", json=asked) as answer:
        answer.raise_for_status()
        async for _ in answer.content.iter_any():
            pass
