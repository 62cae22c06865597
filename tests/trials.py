"""How many examples a property is tried on: a quarter at each change, all of them at night (`make test-nightly`)."""

import os

from hypothesis import settings


def trials(num: int) -> settings:
    """Return the settings with so many examples at night."""
    return settings(max_examples=num if os.environ.get("NIGHT") else num // 4)
