"""A client that slows its server down for each other request: `rig.turning_client URL KNOBS PLAIN SLOW`.

It prints a JSON list of (prompt tokens, time to the first byte, time to the end, both ns, whether it was slow). PLAIN
and SLOW are JSON, what to turn the knobs to (rig/knobs.py). Requests come one at a time and are streamed.
"""

import json
import sys
from pathlib import Path

from rig.knobs import Knobs
from rig.stamping_client import ask, connect, go_first

NUM_REQUESTS = 120
SHORTEST = 40  # tokens, as for the client that only stamps
OUTPUT_TOKENS = 4


def main(url: str, path: str, plain: str, slow: str) -> None:
    go_first()
    knobs, settings = Knobs(Path(path)), (json.loads(plain), json.loads(slow))
    connection = connect(url)
    found = []
    for number in range(NUM_REQUESTS):
        is_slow = number % 2
        knobs.turn(**settings[is_slow])
        length, first_ns, total_ns, _ = ask(connection, SHORTEST + number, OUTPUT_TOKENS, True)
        found.append((length, first_ns, total_ns, is_slow))
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
