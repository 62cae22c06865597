"""Middleware that a server is given by name: it passes everything on; that it is there has all requests followed.

It also puts the API server before other processes, where that is allowed: while others keep it from taking up a
request, its client waits and it knows of nothing.
"""

import os
from contextlib import suppress

from taxbreak_vllm.serving.frontend import in_flight

in_flight.FOLLOWED_EVERY = 1
with suppress(PermissionError):
    os.nice(-5)


class PassOn:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)
