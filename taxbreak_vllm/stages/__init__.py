"""What the time of requests went to: stamps of a request in, its stages out."""
