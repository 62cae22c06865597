"""A real vLLM on the CPU, all of it in one process, whose host is turned while it runs.

In: a model's folder, what to turn. Out: how long its decode steps take as it is turned to and fro, from the start of
one to the start of the next, and recordings of them by the worker extension. `Child` is one in a process of its own,
which does as it is told a line.

Two servers of one kind differ by more than 5 %, and so does one with itself a minute later. So what is compared are
runs of a few steps of one process beside each other, before a change and after it, in the order ABBAABBA.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self

MAX_PAIRS = 30  # of runs in one round: so many tokens have room
RUN_STEPS, _SETTLING_STEPS = 8, 2  # of each run, of which the first are not counted
_PROMPT_TOKENS = 16
_MAX_TOKENS = 512
_PLAIN_STEPS = 70  # a recording is compared with the latest 64
_RECORD_S = 60.0
_RECORD_STEPS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What is turned: ns spent in Python before each linear layer, each decoder layer, each step; ns that each step
    waits for another thread; Python functions traced; threads to compute with; whether the compiled forward runs; how
    many requests decode together in a run (None: as many as there may be).
    """

    linear_ns: int = 0
    layer_ns: int = 0
    step_ns: int = 0
    wait_ns: int = 0
    traced: bool = False
    threads: int = 1
    compiled: bool = False
    requests: int | None = None


class Turned:
    """One vLLM; with `compiled` it has a compiled forward beside the eager one."""

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
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod
        from vllm.model_executor.models.llama import LlamaDecoderLayer
        from vllm.v1.worker.cpu_worker import CPUWorker

        self._turn = Turn()
        self._spent_ns = 0
        self._spool, self._requests = spool, requests
        self._slow(CPUWorker, "execute_model", self._in_step)  # before the worker extension wraps it
        self._llm = LLM(
            model=str(model),
            load_format="dummy",
            dtype="float32",
            enforce_eager=not compiled,
            compilation_config={"mode": 3} if compiled else None,
            max_model_len=_MAX_TOKENS,
            max_num_seqs=max(requests, 8),
            max_num_batched_tokens=2048,
            kv_cache_memory_bytes=2**28,
            enable_prefix_caching=False,
            worker_extension_cls="taxbreak_vllm.WorkerExtension",
            distributed_executor_backend="vllm.v1.executor.uniproc_executor.UniProcExecutor",
        )
        # after the forward was compiled, which so has none of it
        self._slow(UnquantizedLinearMethod, "apply", lambda: _spin(self._turn.linear_ns))
        self._slow(LlamaDecoderLayer, "forward", lambda: _spin(self._turn.layer_ns))
        self._forwards = _with_eager(self._llm) if compiled else []
        self._switch(self._turn)

    def alternate(self, before: Turn, after: Turn, pairs: int) -> list[tuple[int, int, int]]:
        """Return of each pair of runs the median step before and after, and what of the latter was added, ns.

        What was added is what the places that are turned took by the clock.
        """
        turns = [turn for number in range(pairs) for turn in ((after, before) if number % 2 else (before, after))]
        begun, spent = self._run([turn for turn in turns for _ in range(RUN_STEPS)])
        found = []
        for number in range(pairs):
            runs = [slice(at + _SETTLING_STEPS, at + RUN_STEPS + 1) for at in self._starts(number)]
            (a_ns, a_spent), (b_ns, b_spent) = ((_median(begun[run]), _median(spent[run])) for run in runs)
            found.append((a_ns, b_ns, b_spent - a_spent))
        return found

    def record(self, turn: Turn, count: int) -> list[Path]:
        """Record so many decode steps, after enough plain ones to compare them with."""
        from taxbreak_vllm.model.step import Phase
        from taxbreak_vllm.model.worker import CaptureRequest
        from taxbreak_vllm.spool.spool import Spool

        self._run([turn] * _PLAIN_STEPS)
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
            self._run([turn] * _RECORD_STEPS)
            found = [capture.path for capture in spool.captures() if capture.path not in known]
        return found

    @staticmethod
    def _starts(pair: int) -> tuple[int, int]:
        """Return at which step the run before the change and the one after it begin."""
        first = 2 * pair * RUN_STEPS
        return (first + RUN_STEPS, first) if pair % 2 else (first, first + RUN_STEPS)

    def _run(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """Let all requests have a token for each turn; return when each decode step began, and what was spent by then.

        Both have one more than there are turns.
        """
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        sampling = SamplingParams(max_tokens=len(turns) + 2, ignore_eos=True, temperature=0.0, detokenize=False)
        prompts = [
            {"prompt_token_ids": [(131 * row + 7 * at) % 200 + 6 for at in range(_PROMPT_TOKENS)]}
            for row in range(turns[0].requests or self._requests)
        ]
        begun: list[int] = []
        spent: list[int] = []
        step, of_step = engine.step, iter((turns[0], *turns))  # the first step is the prompts'

        def turned() -> object:
            begun.append(monotonic_ns())
            spent.append(self._spent_ns)
            self._switch(next(of_step, Turn()))
            return step()

        engine.step = turned
        try:
            self._llm.generate(prompts, sampling, use_tqdm=False)
        finally:
            engine.step = step
            self._switch(Turn())
        return begun[1:][: len(turns) + 1], spent[1:][: len(turns) + 1]

    def _switch(self, turn: Turn) -> None:
        import torch

        if torch.get_num_threads() != turn.threads:
            torch._C.set_num_threads(turn.threads)  # vLLM has replaced the public one by nothing
        sys.setprofile((lambda *_: None) if turn.traced else None)
        for forward in self._forwards:
            forward.do_not_compile = not turn.compiled
        self._turn = turn

    def _slow(self, owner: type, name: str, spend: Callable[[], None]) -> None:
        """Have a function take as long as is turned."""
        call = getattr(owner, name)

        @wraps(call)
        def slowed(*args: object, **kwargs: object) -> object:
            begun_ns = monotonic_ns()
            spend()
            self._spent_ns += monotonic_ns() - begun_ns
            return call(*args, **kwargs)

        setattr(owner, name, slowed)

    def _in_step(self) -> None:
        _spin(self._turn.step_ns)
        if self._turn.wait_ns:
            done = threading.Event()
            other = threading.Timer(self._turn.wait_ns / 1e9, done.set)
            other.start()
            done.wait()
            other.join()


def _with_eager(llm: Any) -> list[Any]:  # noqa: ANN401 - vLLM's, which has no types of its own
    """Return the forwards that are compiled, each with its layers turned back to what an eager server would run."""
    from vllm.model_executor.custom_op import CustomOp

    (model,) = llm.apply_model(lambda model: model)
    forwards = [each for each in model.modules() if getattr(each, "do_not_compile", True) is False]
    for forward in forwards:
        for layer in forward.modules():
            if isinstance(layer, CustomOp):
                layer._forward_method = layer.forward_cpu  # what is compiled has taken in the other
    return forwards


def _median(counted: Sequence[int]) -> int:
    return round(median(after - at for at, after in pairwise(counted)))


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

    def alternate(self, before: Turn, after: Turn, pairs: int) -> list[tuple[int, int, int]]:
        """Do as `Turned.alternate`."""
        return [tuple(each) for each in self._ask("alternate", before=asdict(before), after=asdict(after), pairs=pairs)]

    def record(self, turn: Turn, count: int) -> list[Path]:
        """Do as `Turned.record`."""
        return [Path(path) for path in self._ask("record", turn=asdict(turn), count=count)]

    def _ask(self, what: str, **how: object) -> list[Any]:
        self._process.stdin.write(json.dumps([what, how]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[Any]:
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"vLLM ended: {Path(self._log.name).read_text()[-2000:]}")
        return json.loads(line)


def _serve(model: Path, spool: Path, requests: int, *, compiled: bool) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    turned = Turned(model, spool, requests=requests, compiled=compiled)
    print("[]", file=out, flush=True)
    for line in sys.stdin:
        what, how = json.loads(line)
        turns = {name: Turn(**each) if isinstance(each, dict) else each for name, each in how.items()}
        answer = (turned.alternate if what == "alternate" else turned.record)(**turns)
        print(json.dumps(answer, default=str), file=out, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), compiled=sys.argv[4] == "1")
