"""An asynchronous GPU server on paper: what it does, what a profiler would write of it, and the truth beside it."""
