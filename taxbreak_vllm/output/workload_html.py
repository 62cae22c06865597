"""A prediction or a sweep as one HTML file, in the style of the sidecar's page; it opens offline and runs no script."""

from pathlib import Path

from taxbreak_vllm.model.sweep import Swept
from taxbreak_vllm.model.workload import Prediction
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.output.page.render import render_workload
from taxbreak_vllm.output.page.workload import prediction_view, sweep_view


def workload_html(found: Prediction | Swept) -> str:
    """Return the document."""
    return render_workload(sweep_view(found) if isinstance(found, Swept) else prediction_view(found))


def write_workload_html(found: Prediction | Swept, target: Path) -> None:
    """Write the document; raises TaxbreakError where the disk refuses."""
    document = workload_html(found)
    with replacing(target) as temporary:
        temporary.write_text(document, encoding="utf-8")
