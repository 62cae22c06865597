"""Analyze one trace in this process and print what each stage took, as JSON: decode, analysis, the JSON of the result.

Run by `trace_speed.py` as a process of its own, for growth with the size of the file without the cost of starting.
"""

import itertools
import json
import sys
import time

from taxbreak_vllm.taxes.analyze import analyze
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.kernels import KernelRules
from taxbreak_vllm.trace.read.kineto import read_events

path, small = sys.argv[1:]
analyze(small)  # what is loaded at the first use only belongs to the start
rules = KernelRules.load()
marks_ns = [time.process_time_ns()]
events = read_events(path)
marks_ns.append(time.process_time_ns())
breakdown = Recording(events, Terms(rules=rules)).breakdown
marks_ns.append(time.process_time_ns())
breakdown.to_json()
marks_ns.append(time.process_time_ns())
stages_ns = [end - start for start, end in itertools.pairwise(marks_ns)]
print(json.dumps(dict(zip(("decode", "analysis", "json"), stages_ns, strict=True)) | {"events": events.num_events}))
