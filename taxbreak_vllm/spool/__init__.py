"""Captures on disk, the one seam between serving and analysis."""
