"""What an engine was asked and what it batched, as lines of integers: files in, rows out, and the other way round."""
