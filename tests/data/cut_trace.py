"""Cut one profiler step out of a recorded trace: `python cut_trace.py WHOLE.json.gz ProfilerStep#551 CUT.json.gz`.

In come the whole recording and the name of a step's annotation. Out goes the same recording with what the host began
within that step, the device's activities that these calls launched, and those of the step's time that no call of the
whole launched. Every event that stays is as it was; flow arrows (`ac2g`) go, since they say nothing that ids do not.
"""

import gzip
import json
import sys
from pathlib import Path

DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


def cut(whole: Path, step: str) -> str:
    trace = json.loads(gzip.decompress(whole.read_bytes()))
    events = trace["traceEvents"]
    (window,) = [event for event in events if event.get("name") == step and event["cat"] == "user_annotation"]
    begin, end = window["ts"], window["ts"] + window["dur"]

    def starts_within(event: dict) -> bool:
        return begin <= event["ts"] < end

    timed = [event for event in events if event["ph"] == "X"]
    host = [event for event in timed if event.get("cat") not in DEVICE]
    calls = {event["args"]["correlation"] for event in host if "correlation" in event.get("args", {})}
    kept = {e["args"]["correlation"] for e in host if "correlation" in e.get("args", {}) and starts_within(e)}

    def belongs(event: dict) -> bool:
        if event["ph"] == "M":
            return True
        if event["ph"] != "X":
            return False
        if event.get("cat") not in DEVICE or event["args"]["correlation"] not in calls:
            return starts_within(event)
        return event["args"]["correlation"] in kept

    return json.dumps(trace | {"traceEvents": [event for event in events if belongs(event)]}, separators=(",", ":"))


if __name__ == "__main__":
    Path(sys.argv[3]).write_bytes(gzip.compress(cut(Path(sys.argv[1]), sys.argv[2]).encode(), mtime=0))
