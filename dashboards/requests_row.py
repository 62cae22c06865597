"""What requests wait for at the API servers: a row of the overview; they are of no engine, so none is asked for."""

from panels import GREEN, MODEL, RATIO, RED, SECONDS, Panels, Query, Threshold, lines, rate

STAGES = {
    "receive": "receive",
    "parse": "parse",
    "render": "render (tokenizer)",
    "submit": "submit",
    "ipc_input": "to the engine",
    "queue": "queue",
    "prefill": "prefill",
    "decode": "decode",
    "ipc_output": "from the engine",
    "detokenize": "detokenize",
    "serialize": "serialize",
    "send": "send",
}


def quantile(quantile: float, metric: str, by: str = "") -> str:
    """Return a quantile of what the API servers tell, nothing where there was no request."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, {rate(f'{metric}_bucket', labels, MODEL)}) >= 0"


def requests() -> Panels:
    """Build the row that tells of requests; the panels are those of a server whose API servers are followed."""
    followed = "Empty where the API servers are not followed: VLLM_PLUGINS=taxbreak makes them tell."
    stages, first = "taxbreak_request_stage_seconds", "taxbreak_time_to_first_byte_seconds"
    return [
        *(
            lines(
                f"Stages of a request, {word}",
                "What a request's time goes to, from its arrival at the API server to the last byte of its answer: "
                f"each stage's {text} by itself, so that the stack is near the whole request's and not it. The last "
                f"four are those of its last output. {followed}",
                SECONDS,
                [Query(quantile(share_of_all, stages, "stage"), "{{stage}}")],
                stacked=True,
                names=STAGES,
            )
            for share_of_all, word, text in ((0.5, "median", "median"), (0.95, "p95", "95th percentile"))
        ),
        lines(
            "Time to the first byte",
            "From a request's arrival at the API server to the first byte of its answer's body. vLLM's own time to the "
            "first token begins later, in the renderer, and ends before the token is made into text and JSON. "
            f"{followed}",
            SECONDS,
            [Query(quantile(0.5, first), "p50"), Query(quantile(0.95, first), "p95")],
        ),
        lines(
            "Delivery of an output, p95",
            "From the engine to the client, for single outputs of one request in 64: the message, the detokenizer, the "
            "wait for its turn and the making of JSON, the sending. Tokens that come later than the engine makes them "
            f"are late here. {followed}",
            SECONDS,
            [Query(quantile(0.95, "taxbreak_api_token_seconds", "part"), "{{part}}")],
            stacked=True,
            names=STAGES,
        ),
        lines(
            "Event loop's lag",
            "How late the event loop of an API server came to what was due. Above some ms something in it blocks all "
            f"requests, most often a long prompt in the tokenizer. {followed}",
            SECONDS,
            [
                Query(quantile(0.5, "taxbreak_event_loop_lag_seconds"), "p50"),
                Query(quantile(0.99, "taxbreak_event_loop_lag_seconds"), "p99"),
            ],
        ),
        lines(
            "Waits for a CPU",
            "Share of the time in which the main thread of a process wanted to run and had no CPU, the worst of its "
            "kind. The dashed line is 10 %: from there on the server wants more CPUs, or ones of its own.",
            RATIO,
            [Query(f"max by (process) (taxbreak_runqueue_wait_ratio{{{MODEL}}})", "{{process}}")],
            thresholds=(Threshold(None, GREEN), Threshold(0.1, RED)),
            limit=True,
        ),
    ]
