"""Write the dashboards' JSON: `python dashboards/generate.py [FOLDER]`, by default beside this file."""

import json
import sys
from pathlib import Path

from breakdown import breakdown
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from health import health
from overview import overview

FILES = {
    "taxbreak-overview.json": overview,
    "taxbreak-breakdown.json": breakdown,
    "taxbreak-health.json": health,
}


def main(folder: Path) -> None:
    """Write every dashboard into a folder."""
    for name, make in FILES.items():
        text = json.dumps(make(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
