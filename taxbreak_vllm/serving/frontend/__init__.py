"""In an API server's process: its requests are timed, and what their time went to is published."""
