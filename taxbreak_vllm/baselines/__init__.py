"""The store of floors and replayed baselines."""
