"""What runs inside vLLM: step timing, sampling, recording, hooks. Writes to the spool, imports no analysis."""
