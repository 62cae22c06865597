"""Middleware that a server is given by name: it passes everything on; that it is there has all requests followed."""

from taxbreak_vllm.serving.frontend import in_flight

in_flight.FOLLOWED_EVERY = 1


class PassOn:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)
