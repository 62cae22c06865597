"""Middleware that a server is given by name: it passes everything on; that it is there has all requests followed.

It also puts the server before what else this machine does, where that is allowed: while others keep it from taking up a
request, its client waits and it knows of nothing.
"""

from rig.stamping_client import go_first
from taxbreak_vllm.serving.frontend import in_flight

in_flight.FOLLOWED_EVERY = 1
go_first()


class PassOn:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)
