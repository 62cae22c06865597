"""vLLM's scheduler in virtual time beside real servers: are steps batched alike?

    python benchmarks/workload.py [--steps 10000] [--only NAME] [--json FILE]

For each setting a server of the tiny model gets varied traffic (tests/rig/varied_client.py) until it has taken so many
steps, and `taxbreak workload check` schedules them again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import describe_machine

from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, RunningServer, start_vllm
from taxbreak_vllm.traffic.files import sources
from taxbreak_vllm.traffic.log import read_log
from taxbreak_vllm.traffic.rows import Ended, Row, Scheduled

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from rig.varied_client import ask_all

IDENTITY = {
    "as served": ONE_PROCESS,
    "prefix cache": (*ONE_PROCESS, "--block-size", "32"),
    "preemption": (*ONE_PROCESS, "--block-size", "32", "--num-gpu-blocks-override", "30"),
    "chunked prefill": (*ONE_PROCESS, "--max-num-batched-tokens", "64", "--block-size", "32"),
    "two API servers": (*WORKER_EXTENSION, "--api-server-count", "2"),
}


def main() -> int:
    """Run each setting; 1 where a step was batched otherwise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    is_alike = True
    with tempfile.TemporaryDirectory(prefix="taxbreak-workload-") as folder:
        for name in (name for name in IDENTITY if options.only in name):
            found = _identity(Path(folder), name, options.steps)
            is_alike &= found["is_identical"] is True
            if options.json:
                _keep(options.json, found)
    return int(not is_alike)


def _keep(path: Path, found: dict[str, object]) -> None:
    """Write what was found beside what the file holds of other versions and settings."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = [each for each in known if any(each[name] != found[name] for name in ("vllm", "setting"))]
    path.write_text(json.dumps([*kept, found | {"machine": describe_machine("vllm")}], indent=1) + "\n")


def _identity(folder: Path, name: str, num_steps: int) -> dict[str, object]:
    with _serving(folder, name, IDENTITY[name]) as (server, spool):
        ids: list[str] = []
        while _count(spool, Scheduled) < num_steps:
            ids += ask_all(server.url, "tiny-llama", num=400, seed=len(ids))
            _wait(server, spool, len(ids))
        (engine,) = _taxbreak("check", spool)["engines"]
    engine["is_identical"] = engine["num_steps"] == engine["num_same"] >= num_steps
    per_s = engine["num_steps"] / (engine["elapsed_ns"] / 1e9)
    print(
        f"{name}: {engine['num_same']:,} of {engine['num_steps']:,} steps alike, {engine['num_requests']:,} requests, "
        f"{engine['num_hit_tokens']:,} tokens found in the cache, {engine['num_preemptions']:,} preemptions, "
        f"{per_s:,.0f} steps a second of CPU",
        flush=True,
    )
    return {"setting": name} | engine


def _wait(server: RunningServer, spool: Path, num: int) -> None:
    server.process.wait_until(lambda: _count(spool, Ended) >= num, "keeping requests", timeout_s=120)


class _serving:
    """A server of the tiny model and its spool, for as long as it is needed."""

    def __init__(self, folder: Path, name: str, flags: Sequence[str]) -> None:
        self._folder = folder / name.replace(" ", "-")
        self._folder.mkdir()
        self._flags = flags

    def __enter__(self) -> tuple[RunningServer, Path]:
        self._processes = Processes(self._folder).__enter__()
        spool = self._folder / "spool"
        env = {"VLLM_PLUGINS": "taxbreak", "TAXBREAK_SPOOL": str(spool), "TAXBREAK_ENABLED": "false"}
        env |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        model = write_tiny_llama(self._folder / "tiny-llama")
        return start_vllm(self._processes, model, flags=self._flags, env=env).wait(), spool

    def __exit__(self, *about: object) -> None:
        self._processes.__exit__(*about)


def _count(spool: Path, kind: type[Row]) -> int:
    folders = list(spool.glob("*/traffic"))
    rows = (row for folder in folders for source in sources(folder) for row in read_log(folder, source)[1])
    return sum(isinstance(row, kind) for row in rows)


def _taxbreak(command: str, spool: Path, *options: str) -> dict:
    words = [sys.executable, "-m", "taxbreak_vllm.cli", "workload", command, str(spool), *options, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
