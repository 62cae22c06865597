"""A fleet: the captures of an archive in, each analyzed once, and what they tell across hosts, versions and models."""
