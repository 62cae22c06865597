"""What a simulation of a server's traffic tells, in words."""

from collections.abc import Iterator, Mapping

from taxbreak_vllm.model.workload import Identities, Identity


def identity_lines(found: Identities) -> Iterator[str]:
    """Say of each engine how many of its steps were batched alike, and which was not."""
    for engine in found.engines:
        yield _said(engine)
        if engine.num_warming:
            yield f"  the oldest of its traffic is gone: {engine.num_warming:,} steps came first, to fill the cache"
        if not engine.has_hashes:
            yield "  without hashes of its blocks (TAXBREAK_TRAFFIC_HASHES): nothing is found in the prefix cache"
        if engine.ended_early:
            yield f"  ended early: {engine.ended_early}"
        if engine.first_difference is not None:
            difference = engine.first_difference
            yield f"  first difference, step {difference.step:,}:"
            yield f"    recorded   {_batch(difference.recorded)}"
            yield f"    simulated  {_batch(difference.simulated)}"


def _said(engine: Identity) -> str:
    return (
        f"{engine.engine}, vLLM {engine.vllm}: {engine.num_same:,} of {engine.num_steps:,} steps batched alike "
        f"({engine.num_requests:,} requests, {engine.num_hit_tokens:,} tokens found in the prefix cache, "
        f"{engine.num_preemptions:,} preemptions; {engine.elapsed_ns / 1e9:.1f} s of CPU)"
    )


def _batch(batch: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in batch.items())
