"""Requests that come when they come, answered or not: `rig.open_client URL MODEL RATE SECONDS SHAPE SEED`.

Gaps are drawn from a gamma distribution (shape 1 is Poisson, less is bursty), prompts are token ids, answers are
streamed. It prints nothing: what requests took is what their server tells.
"""

import asyncio
import random
import sys

import aiohttp  # vLLM has it


async def ask_openly(
    url: str,
    model: str,
    *,
    rate: float,
    seconds: float,
    shape: float = 1.0,
    seed: int = 1,
    prompts: tuple[int, int] = (8, 240),
    outputs: tuple[int, int] = (4, 60),
) -> int:
    """Ask at so many requests a second for so long; return how many. Raises what aiohttp raises."""
    draw, at, pending = random.Random(seed), 0.0, []
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        begin = asyncio.get_running_loop().time()
        while at < seconds:
            await asyncio.sleep(max(0.0, begin + at - asyncio.get_running_loop().time()))
            asked = {
                "model": model,
                "prompt": draw.choices(range(5, 261), k=draw.randint(*prompts)),
                "max_tokens": draw.randint(*outputs),
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            pending.append(asyncio.create_task(_ask(session, url, asked)))
            at += draw.gammavariate(shape, 1 / rate / shape)
        await asyncio.gather(*pending)
    return len(pending)


async def _ask(session: aiohttp.ClientSession, url: str, asked: dict[str, object]) -> None:
    async with session.post(f"{url}/v1/completions", json=asked) as answer:
        answer.raise_for_status()
        async for _ in answer.content.iter_any():
            pass


if __name__ == "__main__":
    url, model, *numbers = sys.argv[1:]
    rate, seconds, shape, seed = map(float, numbers)
    asyncio.run(ask_openly(url, model, rate=rate, seconds=seconds, shape=shape, seed=int(seed)))
