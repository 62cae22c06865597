"""Pure functions from breakdowns and dispatches to chains, differences, advice and predictions."""
