"""What runs beside a server: analyzer and replayer, the reader of single traces, and what keeps them running."""
