"""What is told of a server's traffic says what was found, or why there is no answer."""

from dataclasses import replace

from taxbreak_vllm.model.workload import Bounds, Difference, Identities, Identity, Latencies, Prediction, Validation
from taxbreak_vllm.output.text.workload import identity_lines, prediction_lines, prediction_table

ALIKE = Identity(
    engine="engine-0",
    vllm="0.32.0",
    is_whole=True,
    has_hashes=True,
    num_steps=1200,
    num_same=1200,
    num_warming=0,
    num_requests=80,
    num_hit_tokens=640,
    num_preemptions=2,
)
SPREAD = {"mean": 0.1, "p50": 0.08, "p90": 0.2, "p99": 0.4}
ANSWER = Prediction(
    engine="engine-0",
    vllm="0.32.0",
    load="2 times as fast",
    changes={"max_num_seqs": "32"},
    checks=(Validation(name="identity", passed=True, said="1,200 of 1,200"),),
    measured=Latencies(num_requests=80, tokens_per_s=100.0, ttft_s=SPREAD, tpot_s=SPREAD, e2e_s=SPREAD, slo_ratio=0.9),
    predicted=Latencies(num_requests=80, tokens_per_s=190.0, ttft_s=SPREAD, tpot_s=SPREAD, e2e_s=SPREAD, slo_ratio=0.5),
    band={"tokens_per_s": (180.0, 200.0)},
    bounds=Bounds(
        frontend_ratio=0.1,
        host_ratio=0.2,
        device_ratio=0.6,
        kv_peak_ratio=0.5,
        num_preemptions=0,
        e2e_ratio={"frontend": 0.05, "queue": 0.3, "kv": 0.0, "host": 0.15, "device": 0.5},
        bound="device",
    ),
)


def test_steps_batched_alike_are_counted():
    (line,) = identity_lines(Identities(engines=(ALIKE,)))

    assert (
        "1,200 of 1,200 steps batched alike (80 requests, 640 tokens found in the prefix cache, 2 preemptions" in line
    )
    assert ALIKE.is_identical


def test_the_first_difference_is_named():
    first = Difference(step=7, recorded={"prompt_tokens": 3}, simulated={"prompt_tokens": 4})
    other = replace(ALIKE, num_same=1199, first_difference=first, num_warming=5, has_hashes=False, ended_early="lost")

    text = "\n".join(identity_lines(Identities(engines=(other,))))

    assert not other.is_identical
    for words in ("step 7", "recorded   prompt tokens 3", "simulated  prompt tokens 4", "5 steps came first", "lost"):
        assert words in text


def test_an_answer_has_its_checks_its_bound_and_its_band():
    text = "\n".join([*prediction_lines(ANSWER), *prediction_table(ANSWER).lines(None)])

    for words in (
        "max_num_seqs=32",
        "identity: passed",
        "most of the mean E2E is device: frontend 5%, queue 30%",
        "190.0",
        "180.0 to 200.0",
        "50.0%",
    ):
        assert words in text


def test_what_has_no_answer_says_why():
    text = "\n".join(prediction_lines(replace(ANSWER, predicted=None, reason="stalls")))

    assert "no answer: stalls" in text
    assert "mean E2E" not in text
