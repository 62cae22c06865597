"""What a step's attention works on, as vLLM's own annotation of the step says it.

In: the name of a step. Out: `StepTokens`, and `StepWork` for a model that is described; None where the annotation does
not tell, which is of any decoding step in the older form, as that has no context lengths.
"""

import re
from dataclasses import dataclass

from taxbreak_vllm.model.limit import StepTokens
from taxbreak_vllm.model.shape import ModelShape, StepWork, UnpackedWork, WindowWork

# context_N(sqΣq skΣk sqsqΣq² sqskΣqk)_generation_M(…)
_SUMS = re.compile(
    r"context_(\d+)\(sq(\d+)sk(\d+)sqsq(\d+)sqsk(\d+)\)_generation_(\d+)\(sq(\d+)sk(\d+)sqsq(\d+)sqsk(\d+)\)"
)
# context_N(Σq_Σq²)_generation_M(Σq), and before that context_N(Σq)_generation_M(Σq)
_QUERIES = re.compile(r"execute(?:_\d+)?_context_(\d+)\((\d+)(?:_(\d+))?\)_generation_(\d+)\(")


@dataclass(frozen=True, slots=True)
class _Requests:
    """Some of a step's requests: how many, and their sums."""

    num: int
    queries: int
    keys: int
    pairs: int

    def windowed(self, window: int) -> tuple[int, int]:
        """Return keys and pairs within a sliding window: what they are of one request, the least for several."""
        if not self.num:
            return 0, 0
        if self.num == self.queries:  # a token each; the least where one of them has all the context
            keys = min(self.keys - (self.num - 1), window) + self.num - 1
            return keys, keys
        q = self.queries // self.num
        before = self.keys - self.queries if self.num == 1 else 0
        short = min(max(window - before, 0), q)  # queries that see all there is
        pairs = short * before + short * (short + 1) // 2 + (q - short) * window
        return (min(before + q, window + q - 1) if self.num == 1 else self.queries), self.num * pairs


def tokens_of(step_name: str) -> StepTokens | None:
    """Read a step's tokens; a prompt whose context is not named is taken to be its first chunk, which is the least."""
    found = _requests(step_name)
    if found is None:
        return None
    prompts, decoding = found
    return StepTokens(
        queries=prompts.queries + decoding.queries,
        keys=prompts.keys + decoding.keys,
        pairs=prompts.pairs + decoding.pairs,
    )


def work_of(step_name: str, model: ModelShape) -> StepWork | None:
    """Read what a step of this model works on; prompts have their latent cache unpacked, windows hold the least."""
    found = _requests(step_name)
    if found is None:
        return None
    prompts, decoding = found
    unpacked = UnpackedWork(queries=prompts.queries, context=prompts.keys - prompts.queries, pairs=prompts.pairs)
    windows = []
    for window in model.windows:
        (keys, pairs), (more_keys, more_pairs) = prompts.windowed(window), decoding.windowed(window)
        windows.append(WindowWork(window=window, keys=keys + more_keys, pairs=pairs + more_pairs))
    queries = prompts.queries + decoding.queries
    return StepWork(
        queries=queries,
        keys=prompts.keys + decoding.keys,
        pairs=prompts.pairs + decoding.pairs,
        logits_rows=prompts.num + decoding.num,
        padded_tokens=queries,
        windows=tuple(windows),
        unpacked=unpacked if model.absorbed_queries is not None and prompts.num else None,
    )


def _requests(step_name: str) -> tuple[_Requests, _Requests] | None:
    """Read prompts and decoding requests."""
    if found := _SUMS.search(step_name):
        n, q, k, qq, qk, *decoding = map(int, found.groups())
        m, dq, dk, dqq, dqk = decoding
        return _Requests(n, q, k, qk - (qq - q) // 2), _Requests(m, dq, dk, dqk - (dqq - dq) // 2)
    if found := _QUERIES.search(step_name):
        prompts, queries, squares, decoding_requests = found.groups()
        q = int(queries)
        if int(decoding_requests) or not (squares or prompts == "1"):
            return None
        qq = int(squares) if squares else q * q
        return _Requests(int(prompts), q, q, (qq + q) // 2), _Requests(0, 0, 0, 0)
    return None
