"""Real requests by a real OpenAI client: a server's address goes in, the texts it answered come out.

Prefill-heavy requests have a long prompt, new every time so that no prefix cache holds it, and one token to answer:
such a step sees prompt tokens only. Decode-heavy ones have a short prompt and a long answer. Prompts follow from the
seed, decoding is greedy: the same seed asks the same and, of a healthy server, gets the same.
"""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from taxbreak_vllm.model.errors import TaxbreakError

_WORDS = ("host", "device", "launch", "kernel", "step", "token", "batch", "queue", "graph", "prefill", "decode", "idle")


class LoadError(TaxbreakError):
    """A server refused or failed a request."""


class SlowError(LoadError):
    """A server did not answer in time."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Some alike requests, so many of them at a time; the tiny models have one prompt token per character."""

    num_requests: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int

    def prompts(self, seed: int) -> list[str]:
        """Make up the prompts."""
        source = random.Random(seed)
        words = [" ".join(source.choices(_WORDS, k=self.prompt_tokens)) for _ in range(self.num_requests)]
        return [text[: self.prompt_tokens] for text in words]


PREFILL_HEAVY = Requests(num_requests=8, prompt_tokens=400, output_tokens=1, concurrency=2)
DECODE_HEAVY = Requests(num_requests=3, prompt_tokens=8, output_tokens=48, concurrency=3)
ROUND_S = 120.0
ROUND = (PREFILL_HEAVY, DECODE_HEAVY)


def send(
    url: str, model: str, *, seed: int, rounds: Sequence[Requests] = ROUND, timeout_s: float = ROUND_S
) -> list[str]:
    """Send one round of each kind, one kind after the other, and return the answers in the order of the prompts.

    Raises LoadError for the first request that fails, SlowError for one without an answer `timeout_s` after the first
    was sent.
    """
    from openai import APITimeoutError, OpenAI, OpenAIError  # a dependency of vLLM, not of ours

    deadline_s = time.monotonic() + timeout_s
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        def answer(prompt: str, max_tokens: int) -> str:
            completion = client.completions.create(
                model=model,
                prompt=prompt,
                max_tokens=max_tokens,
                temperature=0.0,
                seed=seed,
                timeout=max(0.1, deadline_s - time.monotonic()),
                extra_body={"ignore_eos": True},  # the weights are made up: any token may come, the end too
            )
            return str(completion.choices[0].text)

        answers: list[str] = []
        try:
            for kind in rounds:
                with ThreadPoolExecutor(kind.concurrency) as pool:
                    answers += pool.map(answer, kind.prompts(seed), [kind.output_tokens] * kind.num_requests)
        except OpenAIError as error:
            failure = SlowError if isinstance(error, APITimeoutError) else LoadError
            raise failure(f"{url}: a request failed: {error}") from error
    return answers
