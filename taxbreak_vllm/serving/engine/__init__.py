"""In an engine's process: its loop is timed, and what its iterations went to is published."""
