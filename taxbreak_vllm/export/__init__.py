"""Breakdowns and dispatches for other tools: a data frame, Parquet, speedscope, one HTML page."""
