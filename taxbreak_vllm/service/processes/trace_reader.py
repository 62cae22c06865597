"""The child that reads a capture's trace for the page and prints one JSON object.

`python -m taxbreak_vllm.service.processes.trace_reader WHAT CAPTURE`, where WHAT is `timeline` (the step instant by
instant) or `fusion` (its chains of kernels).
"""

import os
import sys
from collections.abc import Sequence

from taxbreak_vllm.errors import TaxbreakError
from taxbreak_vllm.insight.fusion import fusion
from taxbreak_vllm.insight.segments import step_timelines

_NICENESS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was asked for; one line on standard error and 1 where the capture cannot be read."""
    what, path = sys.argv[1:] if arguments is None else arguments
    os.nice(_NICENESS)
    try:
        data = fusion(path).to_json() if what == "fusion" else step_timelines(path)[0].to_json()
    except TaxbreakError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
