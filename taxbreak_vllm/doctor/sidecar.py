"""A running sidecar, or a vLLM server that mounts our routes: its status in, whether it records and fits us out."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from taxbreak_vllm.doctor.finding import Finding, fail, ok, warning
from taxbreak_vllm.model.errors import TaxbreakError

MAX_SKEW_NS = 2 * 10**9
_RESTARTS = 3
_WITHIN_BUDGET = "budget"  # the sampling rate that the overhead budget allows

Status = Mapping[str, Any]


def sidecar(
    url: str, ask: Callable[[], Status | None], *, version: str, now_ns: Callable[[], int]
) -> Iterator[Finding]:
    """Yield what is wrong with a sidecar; `ask` returns None where one may be absent and is."""
    check = "sidecar"
    try:
        status = ask()
        if status is None:
            yield ok(check, f"absent: none at {url} (--url names another)")
            return
        theirs, servers, skew_ns = status["version"], status["servers"], abs(status["now_unix_ns"] - now_ns())
    except (TaxbreakError, KeyError) as error:
        yield fail(check, str(error), f"start taxbreak serve, or say where it runs if not at {url}")
        return
    if theirs == version:
        yield ok(check, f"{url}, version {theirs}")
    else:
        yield warning(
            check, f"{url} has version {theirs}, this is {version}", "install one version for server, sidecar and here"
        )
    if skew_ns > MAX_SKEW_NS:
        yield warning("clock", f"{url} is {skew_ns / 1e9:.0f} s off from here", "let NTP set both clocks")
    if status["analyzer"]["restarts"] >= _RESTARTS:
        restarts = f"it was started again {status['analyzer']['restarts']} times"
        yield warning("analyzer", restarts, "see the sidecar's log for why it ends")
    yield _workers([server for server in servers if server["live"]])


def _workers(live: list[Status]) -> Finding:
    check = "workers"
    if not live:
        return warning(
            check,
            "no running server writes into its spool",
            "start vLLM with --worker-extension-cls taxbreak_vllm.WorkerExtension, the same TAXBREAK_SPOOL and user",
        )
    off = sorted({worker.get("off_reason") or "turned off" for worker in live if not worker["enabled"]})
    notes = list(dict.fromkeys(note for worker in live for note in worker.get("notes", ())))
    dropped: Counter[str] = sum((Counter(worker["dropped"]) for worker in live), Counter())
    samples = sum(worker["num_samples"] for worker in live)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    seen = f"{len(live)} running, {samples} steps recorded, {dropped.total()} not{f' ({reasons})' if reasons else ''}"
    if off:
        return warning(check, f"{seen}; recording is off: {', '.join(off)}", "taxbreak control --enable turns it on")
    if notes:
        return warning(check, f"{seen}; {'; '.join(notes)}", "the note says what to do")
    if dropped.total() - dropped[_WITHIN_BUDGET] > samples:
        return warning(check, f"{seen}: more than are kept", "docs/troubleshooting.md explains each reason")
    return ok(check, seen)
