"""The sidecar: watch the spool, analyze in a process of its own, keep results in SQLite, export them."""
