"""What `taxbreak doctor` prints."""

from taxbreak_vllm.doctor.finding import Finding
from taxbreak_vllm.output.text.names import visible


def finding_text(finding: Finding) -> str:
    """Say a finding in a line, and in a second one what to do about it."""
    lines = [f"{finding.grade:<8}{finding.check}: {finding.seen}", f"        → {finding.remedy}"]
    return "".join(visible(line) + "\n" for line in lines[: 2 if finding.remedy else 1])
