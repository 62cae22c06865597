import pytest

from taxbreak_vllm.doctor.sidecar import sidecar
from taxbreak_vllm.model.errors import TaxbreakError

NOW_NS = 10**18
WORKER = {"live": True, "enabled": True, "dropped": {}, "num_samples": 5, "off_reason": None, "notes": []}


def examined(ask, *, version="1.0"):
    return list(sidecar("http://host:1", ask, version=version, now_ns=lambda: NOW_NS))


def status(*workers, restarts=0, off_ns=0, **changes):
    return {
        "version": "1.0",
        "now_unix_ns": NOW_NS + off_ns,
        "servers": [WORKER | worker for worker in workers],
        "analyzer": {"restarts": restarts},
    } | changes


@pytest.mark.parametrize(
    ("answer", "grades", "seen"),
    [
        (status({}), ["ok", "ok"], "1 running, 5 steps recorded, 0 not"),
        (None, ["ok"], "absent: none at http://host:1"),
        (status({}, version="0.9"), ["warning", "ok"], "has version 0.9, this is 1.0"),
        (status({}, off_ns=5 * 10**9), ["ok", "warning", "ok"], "5 s off"),
        (status({}, restarts=3), ["ok", "warning", "ok"], "started again 3 times"),
        (status(), ["ok", "warning"], "no running server writes into its spool"),
        (status({"live": False}), ["ok", "warning"], "no running server writes into its spool"),
        (status({"enabled": False, "off_reason": "overhead"}), ["ok", "warning"], "recording is off: overhead"),
        (status({"notes": ["CUPTI 24: faults"]}), ["ok", "warning"], "CUPTI 24: faults"),
        (status({"dropped": {"outbox": 9}}), ["ok", "warning"], "9 not (9 outbox): more than are kept"),
        (status({"dropped": {"budget": 90}}), ["ok", "ok"], "90 not (90 budget)"),
        ({"detail": "Not Found"}, ["fail"], "version"),
    ],
)
def test_what_a_sidecar_says_is_judged(answer, grades, seen):
    found = examined(lambda: answer)

    assert [finding.grade for finding in found] == grades
    assert any(seen in finding.seen for finding in found), found


def test_a_sidecar_that_was_named_and_does_not_answer_is_a_failure():
    def ask():
        raise TaxbreakError("http://host:1: cannot be reached")

    (found,) = examined(ask)

    assert (found.grade, found.seen) == ("fail", "http://host:1: cannot be reached")
