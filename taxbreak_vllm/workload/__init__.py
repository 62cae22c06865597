"""A server under other load or settings: its traffic in, what vLLM's own scheduler would make of it out."""
