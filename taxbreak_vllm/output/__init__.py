"""Breakdowns for eyes and other tools: text, the page, a data frame, Parquet, speedscope; handed what they show."""
