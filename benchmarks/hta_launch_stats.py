"""Load a trace with HTA and ask for its launch statistics: the nearest thing to our breakdown that HTA has.

Run by `trace_speed.py` with the Python of HTA's own venv; both HolisticTraceAnalysis and traceinsight are `hta` there.
Prints how many launches HTA joined.
"""

import sys

from hta.trace_analysis import TraceAnalysis

# HTA leaves a trace's last step out unless told otherwise; ours reads every step, so it does too.
analysis = TraceAnalysis(trace_files={0: sys.argv[1]}, include_last_profiler_step=True)
print(len(analysis.get_cuda_kernel_launch_stats(ranks=[0], visualize=False)[0]))
