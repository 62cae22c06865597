"""Where a command finds the traffic of a server: a folder as it is, or what a running sidecar has, for a while."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def traffic_at(word: str, *, server_id: str | None, api_key: str | None) -> Iterator[Path]:
    """Yield a path with traffic: the one that is named, or a folder with what the server at a URL has kept so far.

    Raises TaxbreakError where the server cannot be asked, or `server_id` is given with a path.
    """
    if not word.startswith(("http://", "https://")):
        if server_id is not None:
            from taxbreak_vllm.model.errors import SettingsError

            raise SettingsError("--server-id is of a URL; of a spool name the folder SPOOL/SERVER")
        yield Path(word)
        return
    from taxbreak_vllm.cli.client import fetch_traffic

    with tempfile.TemporaryDirectory(prefix="taxbreak-traffic-") as folder:
        fetch_traffic(word, Path(folder), server_id=server_id, api_key=api_key)
        yield Path(folder)
