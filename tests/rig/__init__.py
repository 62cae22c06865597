"""An asynchronous GPU server on paper: what it does, the trace a profiler would write of it, and the truth beside it."""
