"""This machine: its processor, the limits of a process, and processes that end with the one that started them."""
