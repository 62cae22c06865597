"""A trace file into columns: its bytes, its events, and what each op was called with."""
