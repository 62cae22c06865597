"""Load on a server from clients of its own making: how requests come and what they ask for in, what clients saw out.

Closed: so many clients, each of which asks again once it was answered. Open: requests come at a rate, at random.
"""

import asyncio
import random
import time
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import aiohttp  # a dependency of vLLM, not of ours

_WORDS = ("host", "device", "launch", "kernel", "step", "token", "batch", "queue", "graph", "prefill", "decode", "idle")
_DRAIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What clients ask for; `rate` (requests a second) makes it open, `truncated` cuts prompts to so many tokens."""

    clients: int = 8
    rate: float | None = None
    prompt_chars: int = 64
    truncated: int | None = None
    output_tokens: int = 32
    is_streamed: bool = True
    seconds: float = 20.0


class Answer(NamedTuple):
    """One answer as its client saw it."""

    asked_s: float
    first_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the clients saw: answers that began and ended within the time of the load."""

    tokens_per_s: float
    requests: int
    ttft_ms: float
    e2e_ms: float


async def send(url: str, model: str, load: Load, *, seed: int) -> Seen:
    """Send the load for its time and wait for the last answers; raises RuntimeError where a request fails."""
    source = random.Random(seed)
    answers: list[Answer] = []
    begun_s = time.monotonic()
    until_s = begun_s + load.seconds
    timeout = aiohttp.ClientTimeout(total=load.seconds + _DRAIN_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> None:
            answers.append(await _ask(session, url, model, load, source))

        async def ask_on() -> None:
            while time.monotonic() < until_s:
                await ask()

        async with asyncio.TaskGroup() as tasks:
            if load.rate is None:
                for _ in range(load.clients):
                    tasks.create_task(ask_on())
            else:
                while time.monotonic() < until_s:
                    tasks.create_task(ask())
                    await asyncio.sleep(source.expovariate(load.rate))
    return _seen([answer for answer in answers if answer.end_s <= until_s], load, until_s - begun_s)


async def _ask(session: aiohttp.ClientSession, url: str, model: str, load: Load, source: random.Random) -> Answer:
    num_words = load.prompt_chars // 4
    body = {
        "model": model,
        "prompt": " ".join(source.choices(_WORDS, k=num_words))[: load.prompt_chars],
        "max_tokens": load.output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": load.is_streamed,
    }
    if load.truncated is not None:
        body["truncate_prompt_tokens"] = load.truncated
    asked_s = time.monotonic()
    first_s = 0.0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{url} answered {response.status}: {(await response.text())[:500]}")
        async for _ in response.content.iter_any():
            first_s = first_s or time.monotonic()
    return Answer(asked_s, first_s, time.monotonic())


def _seen(answers: list[Answer], load: Load, seconds: float) -> Seen:
    if not answers:
        raise RuntimeError("no request was answered within the time of the load")
    return Seen(
        tokens_per_s=len(answers) * load.output_tokens / seconds,
        requests=len(answers),
        ttft_ms=1e3 * median(answer.first_s - answer.asked_s for answer in answers),
        e2e_ms=1e3 * median(answer.end_s - answer.asked_s for answer in answers),
    )
