"""A real vLLM on the CPU, all of it in one process, whose host can be slowed down while it runs.

In: a model's folder, what to turn. Out: how long its decode steps take, from the start of one to the start of the next,
and recordings of them by the worker extension. `Child` is one in a process of its own, which does as it is told a line.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self

_PROMPT_TOKENS = 16
_WARM_STEPS = 8  # of each round, not counted
_RECORD_S = 60.0
_RECORD_STEPS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What is turned: ns spent in Python before each linear layer, each decoder layer, each step; ns that each step
    waits for nothing; Python functions traced; threads to compute with.
    """

    linear_ns: int = 0
    layer_ns: int = 0
    step_ns: int = 0
    wait_ns: int = 0
    traced: bool = False
    threads: int = 1

    def added_ns(self, calls: dict[str, int]) -> int:
        """Return what a step takes longer, from how often each place is passed in one."""
        spent_ns = self.linear_ns * calls["linear"] + self.layer_ns * calls["layer"]
        return spent_ns + self.step_ns + self.wait_ns


class Turned:
    """One vLLM; `calls` is how often a step passes each place."""

    def __init__(self, model: Path, spool: Path, *, requests: int, compiled: bool = False) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_PLUGINS": "",
            "TAXBREAK_SPOOL": str(spool),
            "TAXBREAK_SAMPLE_EVERY": "1000000",
            "TAXBREAK_OVERHEAD_BUDGET_RATIO": "1",
            "TAXBREAK_MAX_STALL_MS": "10000",
        }
        from vllm import LLM

        self._turn = Turn()
        self._passed = {"linear": 0, "layer": 0, "step": 0}
        self.calls: dict[str, int] = {}
        self._requests = requests
        if not compiled:
            self._place()
        self._llm = LLM(
            model=str(model),
            load_format="dummy",
            dtype="float32",
            enforce_eager=not compiled,
            compilation_config={"mode": 3} if compiled else None,
            max_model_len=512,
            max_num_seqs=max(requests, 8),
            max_num_batched_tokens=2048,
            kv_cache_memory_bytes=2**28,
            enable_prefix_caching=False,
            worker_extension_cls="taxbreak_vllm.WorkerExtension",
            distributed_executor_backend="vllm.v1.executor.uniproc_executor.UniProcExecutor",
        )
        self._spool = spool

    def time(self, turn: Turn, steps: int) -> list[int]:
        """Return what each of so many decode steps takes, ns, after a few that are not counted."""
        before = dict(self._passed)
        begun = self._run(turn, steps + _WARM_STEPS)
        num_steps = max(self._passed["step"] - before["step"], 1)
        self.calls = {name: round((count - before[name]) / num_steps) for name, count in self._passed.items()}
        return [after - at for at, after in zip(begun[_WARM_STEPS:-1], begun[_WARM_STEPS + 1 :], strict=True)]

    def record(self, turn: Turn, count: int) -> list[Path]:
        """Record so many decode steps, after enough plain ones to compare them with."""
        from taxbreak_vllm.model.step import Phase
        from taxbreak_vllm.model.worker import CaptureRequest
        from taxbreak_vllm.spool.spool import Spool

        self._run(turn, 70)
        spool = Spool(self._spool, max_bytes=2**31, max_captures=10**6)
        known = {capture.path for capture in spool.captures()}
        (status,) = self._llm.collective_rpc("taxbreak_status")
        name = f"turned-{monotonic_ns()}"
        spool.put_request(
            status["server"]["server_id"], CaptureRequest(capture_id=name, steps=count, phase=Phase.DECODE)
        )
        deadline = time.monotonic() + _RECORD_S
        found: list[Path] = []
        while len(found) < count and time.monotonic() < deadline:
            self._run(turn, _RECORD_STEPS)
            found = [capture.path for capture in spool.captures() if capture.path not in known]
        return found

    def _run(self, turn: Turn, steps: int) -> list[int]:
        """Let all requests have so many tokens; return when each step of the engine began."""
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        sampling = SamplingParams(max_tokens=steps + 1, ignore_eos=True, temperature=0.0, detokenize=False)
        prompts = [
            {"prompt_token_ids": [(131 * row + 7 * at) % 200 + 6 for at in range(_PROMPT_TOKENS)]}
            for row in range(self._requests)
        ]
        begun: list[int] = []
        step = engine.step

        def timed() -> object:
            begun.append(monotonic_ns())
            return step()

        with self._turned(turn):
            engine.step = timed
            try:
                self._llm.generate(prompts, sampling, use_tqdm=False)
            finally:
                engine.step = step
        return begun[1:]  # the first is the prompts'

    @contextmanager
    def _turned(self, turn: Turn) -> Iterator[None]:
        import torch

        if torch.get_num_threads() != turn.threads:
            torch._C.set_num_threads(turn.threads)  # vLLM has replaced the public one by nothing
        self._turn = turn
        if turn.traced:
            sys.setprofile(lambda *_: None)
        try:
            yield
        finally:
            sys.setprofile(None)
            self._turn = replace(turn, linear_ns=0, layer_ns=0, step_ns=0, wait_ns=0)

    def _place(self) -> None:
        """Have three places of vLLM take as long as is turned."""
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod
        from vllm.model_executor.models.llama import LlamaDecoderLayer
        from vllm.v1.worker.cpu_worker import CPUWorker

        def slow(owner: type, name: str, place: str, spend: Callable[[], None]) -> None:
            call = getattr(owner, name)

            @wraps(call)
            def slowed(*args: object, **kwargs: object) -> object:
                self._passed[place] += 1
                spend()
                return call(*args, **kwargs)

            setattr(owner, name, slowed)

        slow(UnquantizedLinearMethod, "apply", "linear", lambda: _spin(self._turn.linear_ns))
        slow(LlamaDecoderLayer, "forward", "layer", lambda: _spin(self._turn.layer_ns))
        slow(CPUWorker, "execute_model", "step", self._in_step)

    def _in_step(self) -> None:
        _spin(self._turn.step_ns)
        if self._turn.wait_ns:
            threading.Event().wait(self._turn.wait_ns / 1e9)


def _spin(for_ns: int) -> None:
    if for_ns:
        until = monotonic_ns() + for_ns
        while monotonic_ns() < until:
            pass


class Child:
    """A `Turned` in a process of its own, ended with the context."""

    def __init__(self, model: Path, folder: Path, *, requests: int, compiled: bool = False) -> None:
        folder.mkdir(parents=True)
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(model), str(folder / "spool"), str(requests), str(int(compiled))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )
        self.calls: dict[str, int] = {}
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def time(self, turn: Turn, steps: int) -> list[int]:
        """Do as `Turned.time`."""
        return self._ask("time", turn, steps)

    def record(self, turn: Turn, count: int) -> list[Path]:
        """Do as `Turned.record`."""
        return [Path(path) for path in self._ask("record", turn, count)]

    def _ask(self, what: str, turn: Turn, count: int) -> list[Any]:
        self._process.stdin.write(json.dumps([what, asdict(turn), count]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[Any]:
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"vLLM ended: {Path(self._log.name).read_text()[-2000:]}")
        answer, self.calls = json.loads(line)
        return answer


def _serve(model: Path, spool: Path, requests: int, *, compiled: bool) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    turned = Turned(model, spool, requests=requests, compiled=compiled)
    print(json.dumps([[], {}]), file=out, flush=True)
    for line in sys.stdin:
        what, turn, count = json.loads(line)
        answer = (turned.time if what == "time" else turned.record)(Turn(**turn), count)
        print(json.dumps([[each if isinstance(each, int) else str(each) for each in answer], turned.calls]), file=out)
        out.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), compiled=sys.argv[4] == "1")
