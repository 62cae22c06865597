"""The one page for people: the live one of the sidecar, and the file that `analyze --html` writes."""
