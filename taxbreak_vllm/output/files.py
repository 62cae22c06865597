"""Files written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taxbreak_vllm.model.errors import TaxbreakError


@contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` and rename it to that at the end; nothing stays where the body fails.

    Raises TaxbreakError where the disk refuses.
    """
    target = Path(target)
    temporary = target.parent / f".{target.name}.tmp"  # `.` has no name to exchange
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise TaxbreakError(f"{target}: cannot write: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
