"""Traffic with all that changes what a scheduler chooses: bursts, common prefixes, turns of a talk, stops, aborts.

`ask_all` as a function; `rig.varied_client URL MODEL NUM CONCURRENCY SEED` as a program. Prompts are token ids.
"""

import random
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

_TOKENS = range(5, 261)
_MEAN_PAUSE_S = 0.02
_ID = re.compile(r'"id": ?"([^"]+)"')


def ask_all(
    url: str,
    model: str,
    *,
    num: int,
    concurrency: int = 12,
    seed: int = 1,
    longest: int = 400,
    num_priorities: int = 1,
) -> list[str]:
    """Ask so many times, most of them at once; return the ids of the answers. Raises what httpx raises."""
    source = random.Random(seed)
    common = [source.choices(_TOKENS, k=longest // 2) for _ in range(3)]
    with httpx.Client(timeout=300.0, verify=False) as client, ThreadPoolExecutor(concurrency) as pool:

        def ask(number: int) -> str:
            asked = {"model": model, "priority": number % num_priorities}
            return _ask(client, url, asked, common, f"{seed}-{number}", longest)

        return list(pool.map(ask, range(num)))


def _ask(
    client: httpx.Client, url: str, asked: dict[str, object], common: list[list[int]], seed: str, longest: int
) -> str:
    draw = random.Random(seed)
    time.sleep(draw.expovariate(1 / _MEAN_PAUSE_S))
    prompt = draw.choice(common) if draw.random() < 0.5 else []
    prompt = prompt + draw.choices(_TOKENS, k=draw.randrange(2, longest - len(prompt)))
    asked = asked | {
        "max_tokens": draw.randrange(1, 60),
        "temperature": 0.8,  # without a seed: vLLM's CPU build fails on a batch whose requests all have one (0.32)
        "ignore_eos": draw.random() < 0.5,
        "logit_bias": {"1": 4.0},  # the end of text comes now and then
        "return_token_ids": True,
    }
    if draw.random() < 0.15:
        return _leave(client, url, asked | {"prompt": prompt, "stream": True}, draw.randrange(1, 8))
    told = _post(client, url, asked | {"prompt": prompt})
    answer = told["choices"][0].get("token_ids") or []
    if draw.random() < 0.3 and len(prompt) + len(answer) < longest:  # the next turn of a talk
        told = _post(client, url, asked | {"prompt": prompt + answer + draw.choices(_TOKENS, k=5)})
    return str(told["id"])


def _post(client: httpx.Client, url: str, asked: dict[str, object]) -> dict:
    return client.post(f"{url}/v1/completions", json=asked).raise_for_status().json()


def _leave(client: httpx.Client, url: str, asked: dict[str, object], num_lines: int) -> str:
    """Hang up after some of the answer."""
    name = ""
    with client.stream("POST", f"{url}/v1/completions", json=asked) as answer:
        answer.raise_for_status()
        for place, line in enumerate(line for line in answer.iter_lines() if _ID.search(line)):
            name = _ID.search(line)[1]  # the text may hold what httpx ends a line at
            if place >= num_lines:
                break
    return name


if __name__ == "__main__":
    url, model, *numbers = sys.argv[1:]
    num, concurrency, seed = map(int, numbers)
    ask_all(url, model, num=num, concurrency=concurrency, seed=seed)
