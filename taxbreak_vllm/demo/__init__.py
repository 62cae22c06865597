"""A real vLLM with a tiny model, real load and the sidecar, in one command; the end-to-end tests use the same parts."""
