"""What the page's login leaves behind: sessions, kept in this process only, and the wrong keys of the last minute.

A session is a random token in a cookie of the browser. The key itself is in none, and no session outlives the process.
"""

import hashlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import IntEnum
from typing import Literal, TypedDict

from fastapi import Request, Response

SESSION_S = 12 * 3600
MAX_SESSIONS = 1000  # the oldest end

WRONG_PER_MINUTE = 5  # from one address
WRONG_PER_MINUTE_IN_ALL = 60
MAX_ADDRESSES = 1000
_MINUTE_NS = 60 * 10**9


class Access(IntEnum):
    """What a request may do; the higher includes the lower."""

    READ = 1
    CONTROL = 2


class Sessions:
    """The sessions that are open, each with the access that its key gave."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._open: OrderedDict[bytes, tuple[Access, int]] = OrderedDict()

    def open(self, access: Access, request: Request, response: Response) -> None:
        """Begin a session in place of the one that the request has, with a token of ours whatever it brings."""
        self._end(request)
        token = secrets.token_urlsafe(32)
        self._open[_digest(token)] = (access, self._now_ns() + SESSION_S * 10**9)
        while len(self._open) > MAX_SESSIONS:
            self._open.popitem(last=False)
        response.set_cookie(_cookie(request), token, max_age=SESSION_S, **_attributes(request))

    def find(self, request: Request) -> Access | None:
        """Return the access of the session that a request has."""
        access, ends_ns = self._open.get(_given(request), (None, 0))
        return access if self._now_ns() < ends_ns else None

    def close(self, request: Request, response: Response) -> None:
        """End the session that a request has."""
        self._end(request)
        response.delete_cookie(_cookie(request), **_attributes(request))

    def _end(self, request: Request) -> None:
        self._open.pop(_given(request), None)


class WrongKeys:
    """The wrong keys of the last minute, from each address and in all: an address may be one that a client made up."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._all: deque[int] = deque(maxlen=WRONG_PER_MINUTE_IN_ALL)
        self._by_address: OrderedDict[str, deque[int]] = OrderedDict()

    def add(self, address: str) -> None:
        """Note one more."""
        own = self._by_address.setdefault(address, deque(maxlen=WRONG_PER_MINUTE))
        self._by_address.move_to_end(address)
        while len(self._by_address) > MAX_ADDRESSES:
            self._by_address.popitem(last=False)
        for times in (own, self._all):
            times.append(self._now_ns())

    def wait_s(self, address: str) -> int:
        """Return for how long no key is taken from an address: 0 where one is."""
        counts = (self._all, self._by_address.get(address, deque(maxlen=WRONG_PER_MINUTE)))
        ends_ns = [times[0] + _MINUTE_NS for times in counts if len(times) == times.maxlen]
        return max(0, -((self._now_ns() - max(ends_ns, default=0)) // 10**9))


class _Attributes(TypedDict):
    secure: bool
    httponly: bool
    samesite: Literal["strict"]


def _attributes(request: Request) -> _Attributes:
    return {"secure": _is_https(request), "httponly": True, "samesite": "strict"}


def _cookie(request: Request) -> str:
    """Name the cookie by the port, for browsers send the cookies of one host to all of its ports."""
    port = request.headers.get("Host", "").rpartition(":")[2]
    name = f"taxbreak-{port}" if port.isdecimal() and port.isascii() else "taxbreak"
    return f"__Host-{name}" if _is_https(request) else name


def _is_https(request: Request) -> bool:
    """Say whether the browser speaks HTTPS, to us or to a proxy; who lies about it spoils a cookie of their own."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip()
    return "https" in (request.url.scheme, forwarded)


def address_of(request: Request) -> str:
    """Return where a request comes from, empty where that is not known."""
    return request.client.host if request.client else ""


def origin(request: Request) -> str:
    """Return the address that the browser asked, as far as the request tells."""
    return f"http{'s' * _is_https(request)}://{request.headers.get('Host', request.url.netloc)}"


def _given(request: Request) -> bytes:
    return _digest(request.cookies.get(_cookie(request), ""))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
