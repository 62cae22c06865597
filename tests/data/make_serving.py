"""Write `serving.json`: what a small vLLM server would leave, one eager prefill and three decodes under a CUDA graph.

Invented numbers, round ones, so that tests and docs can be checked by hand. On the host an op takes 20 µs, its launch
call 5 µs from the tenth on, and 10 µs of Python come before each. A kernel begins 4 µs after its launch call began, or
when its stream is free. Run `python tests/data/make_serving.py` after a change.
"""

import json
from pathlib import Path

LATENCY_US, OP_US, CALL_US, PYTHON_US = 4, 20, 5, 10
LAYER = (  # op, kernel, its duration in µs
    ("_C::rms_norm", "void vllm::rms_norm_kernel<c10::BFloat16>", 4),
    ("aten::mm", "nvjet_tst_128x128_64x4_1x2_h_bz_TNT", 40),
    ("vllm::unified_attention", "flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits>", 30),
    ("_C::silu_and_mul", "void vllm::act_and_mul_kernel<c10::BFloat16, silu>", 6),
)
NUM_LAYERS, NUM_DECODES = 3, 3


class Trace:
    """Appends events while two clocks run: the host thread's and the stream's, in µs."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self.host_us = self.free_us = 1000
        self.correlation = 0

    def host(self, category: str, name: str, start_us: int, duration_us: int, **args) -> None:
        self._add(category, name, start_us, duration_us, pid=100, tid=100, args=args)

    def call(self, name: str, duration_us: int = CALL_US) -> None:
        self.correlation += 1
        self.host("cuda_runtime", name, self.host_us, duration_us, correlation=self.correlation)
        self.called_us = self.host_us
        self.host_us += duration_us

    def device(self, category: str, name: str, duration_us: int) -> None:
        start_us = max(self.called_us + LATENCY_US, self.free_us)
        args = {"correlation": self.correlation, "device": 0, "stream": 7}
        self._add(category, name, start_us, duration_us, pid=0, tid=7, args=args)
        self.free_us = start_us + duration_us

    def op(self, name: str, kernel: str, duration_us: int) -> None:
        start_us = self.host_us + PYTHON_US
        self.host("cpu_op", name, start_us, OP_US)
        self.host_us = start_us + OP_US // 2
        self.call("cudaLaunchKernel")
        self.device("kernel", kernel, duration_us)
        self.host_us = start_us + OP_US

    def step(self, name: str, *, is_graph: bool) -> None:
        start_us = self.host_us
        if is_graph:
            self.host_us += PYTHON_US
            self.call("cudaGraphLaunch")
        for _, kernel, duration_us in LAYER * NUM_LAYERS if is_graph else ():
            self.device("kernel", kernel, duration_us)
        for launch in LAYER * NUM_LAYERS if not is_graph else ():
            self.op(*launch)
        self.op("aten::argmax", "void at::native::reduce_kernel<512, 1, at::native::ArgMaxOps>", 5)
        self.host_us += PYTHON_US
        self.call("cudaMemcpyAsync")
        self.device("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 2)
        self.call("cudaStreamSynchronize", max(self.free_us - self.host_us, 0) + 1)
        self.host_us += PYTHON_US
        self.host("user_annotation", name, start_us, self.host_us - start_us)

    def _add(self, category: str, name: str, start_us: int, duration_us: int, **rest) -> None:
        self.events.append({"ph": "X", "cat": category, "name": name, "ts": start_us, "dur": duration_us, **rest})


def make() -> str:
    trace = Trace()
    trace.step("execute_context_2(64)_generation_0(0)", is_graph=False)
    for _ in range(NUM_DECODES):
        trace.step("execute_context_0(0)_generation_2(2)", is_graph=True)
    head = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "Imagined GPU"}]}
    lines = ",\n".join(json.dumps(event) for event in trace.events)
    return f'{json.dumps(head)[:-1]}, "traceEvents": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    Path(__file__).with_name("serving.json").write_text(make())
