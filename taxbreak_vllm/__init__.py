"""Host/device balance of vLLM engine steps: capture, decompose (ΔFT, ΔCT, ΔKT, HDBI), export.

Everything a user may call from Python is named here and imported on first use, so that a vLLM worker loads no pandas
and the sidecar loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taxbreak_vllm.model.breakdown import Breakdown
    from taxbreak_vllm.model.errors import TaxbreakError
    from taxbreak_vllm.model.step import Phase
    from taxbreak_vllm.output.tables import dispatches
    from taxbreak_vllm.serving.worker import WorkerExtension
    from taxbreak_vllm.taxes.analyze import analyze

__version__ = "0.1.0"

_HOME = {
    "Breakdown": "taxbreak_vllm.model",
    "Phase": "taxbreak_vllm.model",
    "TaxbreakError": "taxbreak_vllm.model.errors",
    "WorkerExtension": "taxbreak_vllm.serving.worker",
    "analyze": "taxbreak_vllm.taxes.analyze",
    "dispatches": "taxbreak_vllm.output.tables",
}

__all__ = ["Breakdown", "Phase", "TaxbreakError", "WorkerExtension", "__version__", "analyze", "dispatches"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
