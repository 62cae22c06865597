"""An engine's loop as rows of stamps, and what the time of its iterations went to."""
