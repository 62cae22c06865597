"""Who may do what: the two keys of the settings, as bearer tokens or through a session of the page.

In: a request. Out: what it may do, or the `Problem` that says what it lacks. Without keys everyone may do everything;
with a key for reading alone nobody may control.
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus

from fastapi import Request
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from taxbreak_vllm.service.http.problems import Problem, problem_response
from taxbreak_vllm.service.http.sessions import MAX_ADDRESSES, Access, Sessions, WrongKeys, address_of
from taxbreak_vllm.settings import Settings

READING = frozenset(("GET", "HEAD"))

_SETTINGS = {Access.CONTROL: "TAXBREAK_API_KEY", Access.READ: "TAXBREAK_READ_KEY"}


class Keys:
    """The keys that open our routes; only digests of them are compared, and each of them for every key given.

    Wrong bearer tokens are bounded as wrong keys of the login are, but not where the right one came from before: it is
    not locked out by somebody else's.
    """

    def __init__(
        self,
        control: SecretStr | None,
        read: SecretStr | None = None,
        *,
        sessions: Sessions | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        keys = ((Access.CONTROL, control), (Access.READ, read))
        self._digests = {access: _digest(key.get_secret_value()) for access, key in keys if key is not None}
        self._sessions = sessions
        self._wrong = WrongKeys(now_ns)
        self._trusted: OrderedDict[str, None] = OrderedDict()

    @classmethod
    def of(
        cls, settings: Settings, *, sessions: Sessions | None = None, now_ns: Callable[[], int] = time.time_ns
    ) -> "Keys":
        """Take the keys of the settings; with `sessions` what was opened on the page opens the API to it, too."""
        return cls(settings.api_key, settings.read_key, sessions=sessions, now_ns=now_ns)

    @property
    def are_set(self) -> bool:
        """Whether anything is asked for at all."""
        return bool(self._digests)

    @property
    def why_read_only(self) -> str:
        """What somebody who may only read is told."""
        if Access.CONTROL in self._digests:
            return "the key of TAXBREAK_READ_KEY only reads; to control is for that of TAXBREAK_API_KEY"
        return "there is only a key to read (TAXBREAK_READ_KEY); control needs one to be set in TAXBREAK_API_KEY"

    def access_by(self, key: str) -> Access | None:
        """Return what a key opens."""
        given = _digest(key.strip())
        opened = [access for access, digest in self._digests.items() if hmac.compare_digest(given, digest)]
        return max(opened, default=None)

    def access_of(self, request: Request) -> Access | None:
        """Return what a request may do; a bearer token counts alone, whatever session comes with it."""
        if not self._digests:
            return Access.CONTROL
        token = _bearer(request)
        if token is not None:
            return None if self._wait_s(request) else self._try(token, address_of(request))
        return None if self._sessions is None else self._sessions.find(request)

    def check(self, request: Request) -> None:
        """Raise a 401 for a request without a key, a 403 for one whose key or page does not open what it asks.

        After too many wrong ones it is a 429, whatever the key.
        """
        wait_s = self._wait_s(request)
        if wait_s:
            text = f"too many wrong keys came from {address_of(request) or 'here'}"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, text, headers={"Retry-After": str(wait_s)})
        access = self.access_of(request)
        if access is None:
            names = " or ".join(_SETTINGS[access] for access in self._digests)
            raise Problem(HTTPStatus.UNAUTHORIZED, f"this needs the key of {names} as a bearer token")
        if not self._digests or request.method in READING:
            return
        if access < Access.CONTROL:
            raise Problem(HTTPStatus.FORBIDDEN, self.why_read_only)
        if _bearer(request) is None and not is_same_origin(request):
            raise Problem(HTTPStatus.FORBIDDEN, "a session controls from its own page only; elsewhere use the key")

    def _try(self, token: str, address: str) -> Access | None:
        access = self.access_by(token)
        if access is None:
            self._wrong.add(address)
            return None
        self._trusted[address] = None
        self._trusted.move_to_end(address)
        while len(self._trusted) > MAX_ADDRESSES:
            self._trusted.popitem(last=False)
        return access

    def _wait_s(self, request: Request) -> int:
        """Return for how long no bearer token is taken from where a request comes from."""
        address = address_of(request)
        if not self._digests or _bearer(request) is None or address in self._trusted:
            return 0
        return self._wrong.wait_s(address)


def is_same_origin(request: Request) -> bool:
    """Say whether a page of our own sent this: browsers say so, and a page elsewhere cannot make them lie.

    Where they do not (`Sec-Fetch-Site` is left out over plain HTTP), they name the page's origin on what is no GET.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    host = request.headers.get("Host")
    return bool(host) and request.headers.get("Origin", "").partition("://")[2] == host


def guarded(app: ASGIApp, api_key: SecretStr | None) -> ASGIApp:
    """Put the bearer token in front of an app that is not made of our routes."""
    keys = Keys(api_key)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                keys.check(Request(scope))
            except Problem as error:
                await problem_response(error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return answer


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
