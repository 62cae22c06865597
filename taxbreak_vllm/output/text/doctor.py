"""What `taxbreak doctor` prints."""

from collections.abc import Iterator

from taxbreak_vllm.doctor.finding import Finding


def finding_lines(finding: Finding) -> Iterator[str]:
    """Say a finding in a line, and in a second one what to do about it."""
    yield f"{finding.grade:<8}{finding.check}: {finding.seen}"
    if finding.remedy:
        yield f"        → {finding.remedy}"
