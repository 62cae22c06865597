"""The energy of a server's GPUs beside the tokens that it put out."""

from dataclasses import dataclass

from taxbreak_vllm.model.numbers import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnergy:
    """Joules of all GPUs of an engine over a window of at least 10 s, and its output tokens meanwhile.

    `joules_per_token` is null where no token was put out; all are null, with a `reason`, where they are not known.
    """

    server_id: str
    engine: str
    window_ns: Int64 | None = None
    joules: float | None = None
    output_tokens: Int64 | None = None
    joules_per_token: float | None = None
    reason: str | None = None
