"""What a simulation of a server's traffic tells, in words."""

from collections.abc import Iterator, Mapping

from taxbreak_vllm.model.workload import Fits, Identities, Identity, Latencies, Prediction
from taxbreak_vllm.output.text.table import Column, Kind, Table

_ONE = {"prompt_tokens": "prompt token", "num_prefills": "prompt", "num_decodes": "decode", "context": "context token"}
E2E_WORDS = {"frontend": "frontend", "queue": "queue", "kv": "KV cache", "host": "host", "device": "device"}


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


def fit_lines(found: Fits) -> Iterator[str]:
    """Say what was fitted, and what is not in it."""
    steps, stalls = found.steps, found.steps.stalls
    error = f"off by {steps.median_error_ratio:.1%} in the middle, eighths of them by {steps.drift_ratio:.1%}"
    yield f"{found.engine}, vLLM {found.vllm}: {steps.num_steps:,} steps, {error}"
    seen = ", ".join(f"{name.replace('_', ' ')} {low:,} to {high:,}" for name, (low, high) in steps.seen.items())
    yield f"  seen in a step: {seen}"
    yield (
        f"  {stalls.num:,} stalls take {stalls.time_ratio:.1%} of the time, {stalls.median_ns / 1e6:.1f} ms in the "
        f"middle, {stalls.max_ns / 1e6:.1f} ms at most"
    )
    frontend = found.frontend
    if frontend is None:
        yield "  too few requests were followed in the API servers (VLLM_PLUGINS=taxbreak) to tell what one costs there"
    else:
        yield (
            f"  an API server takes {frontend.request_ns / 1e6:.2f} ms a request, {frontend.message_ns / 1e6:.3f} ms a "
            f"message, {frontend.output_ns / 1e6:.3f} ms an output in it, {frontend.send_ns / 1e6:.3f} ms to send that "
            f"and {frontend.end_ns / 1e6:.2f} ms an end; to the engine it is {frontend.to_engine_ns / 1e6:.2f} ms, "
            f"back {frontend.from_engine_ns / 1e6:.2f} ms "
            f"({frontend.num_requests:,} requests)"
        )


def fit_table(found: Fits) -> Table:
    """Return what one more of each costs, in µs, by part and graph mode."""
    terms = found.steps.terms
    table = Table(
        (
            Column("µs for one", 3, Kind.NAME),
            *(Column(f"{term.part}, {term.graph_mode}" if term.graph_mode else term.part, 1) for term in terms),
        )
    )
    for name in terms[0].coefficients_ns:
        what, _, above = name.partition(">")
        said = f"{_ONE.get(what, what)}{f' above {above}' if above else ''}"
        table.add(said, *(f"{term.coefficients_ns[name] / 1e3:.3f}" for term in terms))
    return table


def prediction_lines(found: Prediction) -> Iterator[str]:
    """Say what was asked, what was checked, and what is in the way, or why there is no answer."""
    changes = ", ".join(f"{name}={value}" for name, value in found.changes.items())
    yield f"{found.engine}, vLLM {found.vllm}: {found.load}{', ' if changes else ''}{changes}"
    for check in found.checks:
        yield f"  {check.name}: {'passed' if check.passed else 'FAILED'}: {check.said}"
    if found.predicted is None:
        yield f"  no answer: {found.reason}"
        return
    bounds = found.bounds
    if bounds is not None:
        shares = ", ".join(f"{E2E_WORDS[name]} {share:.0%}" for name, share in bounds.e2e_ratio.items())
        yield f"  most of the mean E2E is {E2E_WORDS[bounds.bound]}: {shares}"
        yield (
            f"  busy: frontend {bounds.frontend_ratio:.0%}, host {bounds.host_ratio:.0%}, "
            f"device {bounds.device_ratio:.0%}; KV cache {bounds.kv_peak_ratio:.0%} at most, "
            f"{bounds.num_preemptions:,} preemptions"
        )
    for note in found.notes:
        yield f"  {note}"


def prediction_table(found: Prediction) -> Table:
    """Return the figures: recorded, predicted, and within what band."""
    table = Table((Column("", 3, Kind.NAME), Column("recorded", 1), Column("predicted", 3), Column("band", 2)))
    measured, predicted = (_figures(each) for each in (found.measured, found.predicted))
    for name, value in predicted.items():
        unit, scale = ("tok/s", 1.0) if name == "tokens_per_s" else ("ms", 1e3)
        low, high = found.band.get(name, (value, value))
        before = measured.get(name)
        table.add(
            f"{name.replace('_', ' ').replace('tokens per s', 'throughput')}, {unit}",
            "" if before is None else f"{before * scale:,.1f}",
            f"{value * scale:,.1f}",
            f"{low * scale:,.1f} to {high * scale:,.1f}",
        )
    if found.predicted is not None and found.predicted.slo_ratio is not None:
        before = None if found.measured is None else found.measured.slo_ratio
        table.add("keep to the SLO", "" if before is None else f"{before:.1%}", f"{found.predicted.slo_ratio:.1%}", "")
    return table


def _figures(found: Latencies | None) -> dict[str, float]:
    if found is None:
        return {}
    parts = (("ttft", found.ttft_s), ("tpot", found.tpot_s), ("e2e", found.e2e_s))
    times = {f"{name}_{what}": value for name, spread in parts for what, value in (spread or {}).items()}
    return {"tokens_per_s": found.tokens_per_s} | times
