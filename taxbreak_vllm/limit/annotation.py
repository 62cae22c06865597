"""What a step's attention works on, as vLLM's own annotation of the step says it.

In: the name of a step. Out: `StepTokens`; None where the annotation does not tell, which is of any decoding step in the
older form, as that has no context lengths.
"""

import re

from taxbreak_vllm.model.limit import StepTokens

# context_N(sqΣq skΣk sqsqΣq² sqskΣqk)_generation_M(…)
_SUMS = re.compile(
    r"context_\d+\(sq(\d+)sk(\d+)sqsq(\d+)sqsk(\d+)\)_generation_\d+\(sq(\d+)sk(\d+)sqsq(\d+)sqsk(\d+)\)"
)
# context_N(Σq_Σq²)_generation_M(Σq), and before that context_N(Σq)_generation_M(Σq)
_QUERIES = re.compile(r"execute(?:_\d+)?_context_(\d+)\((\d+)(?:_(\d+))?\)_generation_(\d+)\(")


def tokens_of(step_name: str) -> StepTokens | None:
    """Read a step's tokens; a prompt whose context is not named is taken to be its first chunk, which is the least."""
    if found := _SUMS.search(step_name):
        q, k, qq, qk, *decoding = map(int, found.groups())
        q, k, qq, qk = (a + b for a, b in zip((q, k, qq, qk), decoding, strict=True))
        return StepTokens(queries=q, keys=k, pairs=qk - (qq - q) // 2)
    if found := _QUERIES.search(step_name):
        prompts, queries, squares, decoding_requests = found.groups()
        q = int(queries)
        if int(decoding_requests) or not (squares or prompts == "1"):
            return None
        qq = int(squares) if squares else q * q
        return StepTokens(queries=q, keys=q, pairs=(qq + q) // 2)
    return None
