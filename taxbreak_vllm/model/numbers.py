"""Numbers as they stand in what is read from the spool."""

from typing import Annotated

import msgspec

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # SQLite holds no more
