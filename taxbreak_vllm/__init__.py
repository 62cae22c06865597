"""Host/device balance of vLLM engine steps: capture, decompose (ΔFT, ΔCT, ΔKT, HDBI), export.

Everything a user may call from Python is named here and imported on first use, so that a vLLM worker loads no pandas
and the sidecar loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taxbreak_vllm.insight.advice import advise
    from taxbreak_vllm.insight.diff import diff
    from taxbreak_vllm.insight.evidence import with_plain_step
    from taxbreak_vllm.insight.fusion import fusion
    from taxbreak_vllm.model.breakdown import Breakdown
    from taxbreak_vllm.model.errors import TaxbreakError
    from taxbreak_vllm.model.step import Phase
    from taxbreak_vllm.output.html import write_html
    from taxbreak_vllm.output.parquet import write_parquet
    from taxbreak_vllm.output.pprof import write_pprof
    from taxbreak_vllm.output.speedscope import write_speedscope
    from taxbreak_vllm.output.tables import dispatches
    from taxbreak_vllm.serving.worker import WorkerExtension
    from taxbreak_vllm.taxes.analyze import analyze

    __version__: str

_HOME = {
    "Breakdown": "taxbreak_vllm.model.breakdown",
    "Phase": "taxbreak_vllm.model.step",
    "TaxbreakError": "taxbreak_vllm.model.errors",
    "WorkerExtension": "taxbreak_vllm.serving.worker",
    "advise": "taxbreak_vllm.insight.advice",
    "analyze": "taxbreak_vllm.taxes.analyze",
    "diff": "taxbreak_vllm.insight.diff",
    "dispatches": "taxbreak_vllm.output.tables",
    "fusion": "taxbreak_vllm.insight.fusion",
    "with_plain_step": "taxbreak_vllm.insight.evidence",
    "write_html": "taxbreak_vllm.output.html",
    "write_parquet": "taxbreak_vllm.output.parquet",
    "write_pprof": "taxbreak_vllm.output.pprof",
    "write_speedscope": "taxbreak_vllm.output.speedscope",
}

__all__ = [
    "Breakdown",
    "Phase",
    "TaxbreakError",
    "WorkerExtension",
    "__version__",
    "advise",
    "analyze",
    "diff",
    "dispatches",
    "fusion",
    "with_plain_step",
    "write_html",
    "write_parquet",
    "write_pprof",
    "write_speedscope",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "__version__":
        from taxbreak_vllm.model.version import package_version

        return package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
