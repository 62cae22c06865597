"""`vllm bench serve` in this process: its parser and its main, without 20 s of imports a round.

In: a server, how requests come to it. Out: the figures of one round.
"""

import asyncio
import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from taxbreak_vllm.demo.servers import RunningServer


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How requests come: requests per second (None: all at once), and the burstiness of `vllm bench serve`."""

    rate: float | None
    burstiness: float = 1.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of `vllm bench serve`, and what a table calls it."""

    key: str
    title: str


METRICS = (
    Metric("output_throughput", "tokens/s"),
    Metric("median_ttft_ms", "TTFT p50 ms"),
    Metric("median_itl_ms", "ITL p50 ms"),
)


class Client:
    """Sends rounds of the same random prompts to any server of one model."""

    def __init__(self, model: Path) -> None:
        from vllm.benchmarks import serve
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self._main = serve.main_async
        self._parser = FlexibleArgumentParser()
        serve.add_cli_args(self._parser)
        self._model = model

    def run(self, server: RunningServer, how: Arrivals, *, num_prompts: int, seed: int) -> dict[str, float]:
        """Run one round and return its figures; every request of it must have been answered."""
        words = ["--base-url", server.url, "--model", str(self._model), "--served-model-name", self._model.name]
        words += ["--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "32"]
        words += ["--num-prompts", str(num_prompts), "--seed", str(seed), "--temperature", "0", "--disable-tqdm"]
        words += ["--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,99"]
        words += ["--burstiness", str(how.burstiness), "--max-concurrency", "32"]
        if how.rate is not None:
            words += ["--request-rate", str(how.rate)]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            result = asyncio.run(self._main(self._parser.parse_args(words)))
        if result["completed"] != num_prompts:
            raise SystemExit(
                f"{server.url} answered {result['completed']} of {num_prompts} requests\n{said.getvalue()}"
            )
        return {metric.key: float(result[metric.key]) for metric in METRICS} | {"duration": float(result["duration"])}
