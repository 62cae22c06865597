"""Whether a GPU can be recorded: the NVIDIA driver's files and the version of CUPTI in, findings out."""

import re

from taxbreak_vllm.doctor.finding import Finding, ok, warning
from taxbreak_vllm.doctor.host import Host
from taxbreak_vllm.model import cupti

_SYS_ADMIN, _PERFMON = 21, 38  # bits of the effective capabilities


def profiling_permission(host: Host) -> Finding:
    """Judge whether the driver lets this user profile."""
    check = "CUDA profiling permission"
    params = host.text(host.proc / "driver" / "nvidia" / "params")
    if params is None:
        return ok(check, "absent: no NVIDIA driver here")
    restricted = re.search(r"^RmProfilingAdminOnly:\s*1$", params, flags=re.MULTILINE)
    if not restricted:
        return ok(check, "the driver lets every user profile")
    status = host.text(host.proc / "self" / "status") or ""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, flags=re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    if effective & (1 << _SYS_ADMIN | 1 << _PERFMON):
        return ok(check, "the driver lets only administrators profile, and this is one")
    return warning(
        check,
        "the driver lets only administrators profile: CUPTI may refuse (CUPTI_ERROR_INSUFFICIENT_PRIVILEGES), and"
        " recordings then hold no device activity",
        "load the driver with NVreg_RestrictProfilingToAdminUsers=0, or give the server CAP_PERFMON",
    )


def cupti_version(version: int | None, *, has_cuda: bool) -> Finding:
    """Judge the CUPTI that torch loads by what is known of its versions."""
    check = "CUPTI"
    if not has_cuda:
        return ok(check, "absent: this torch has no CUDA")
    if version is None:
        return ok(check, "absent as a library of its own: its version is not known before a recording")
    faults = cupti.faults(version)
    if faults is None:
        return ok(check, f"{version}, no fault is known of it")
    seen, _, remedy = faults.partition("; ")
    if cupti.leaks(version):
        seen += f"; after {cupti.MAX_RECORDS:,} records of one process it leaks, so recording ends there"
    return warning(check, seen, remedy)
