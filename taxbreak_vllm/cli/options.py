"""Options that several commands share."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, nothing else")]
# Of commands that only ask: in the pod of a sidecar the key to look may be the only one there is.
ReadKey = Annotated[
    str | None, typer.Option("--api-key", envvar=["TAXBREAK_API_KEY", "TAXBREAK_READ_KEY"], help="bearer token")
]
FloorUs = Annotated[
    float | None, typer.Option("--floor-us", min=0, max=1e6, help="measured T_sys of this device in µs, for ΔKT")
]
Rank = Annotated[
    int | None, typer.Option("--rank", min=0, help="only this process, from 0 on, of a file that joins several")
]


def floor_ns(floor_us: float | None) -> int | None:
    """Return a floor as it is kept, in ns."""
    return None if floor_us is None else round(floor_us * 1000)
