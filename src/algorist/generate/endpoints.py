"""One of several servers, and how it does: what share of the requests it gets, and when it is left alone.

Plain bookkeeping over a clock that the caller reads: generate/fleet.py tells what happens. `Lines` are the connections
to it.
"""

from __future__ import annotations

import functools
import math
import resource
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from algorist.generate import server
from algorist.generate.answers import Refused
from algorist.generate.server import Trouble

_BROKEN = 8  # failures in a row after which a server is left alone
_PROBES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # seconds until a server that is left alone is tried again
_CONNECT = 30.0  # seconds for a connection
_LONE = 3  # replies in a row with one choice, where several were asked for: this server ignores n

# A machine that vanishes sends no goodbye: without these its requests would wait for their time-out, an hour.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
        if hasattr(socket, name)
    ),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
]


@dataclass(frozen=True)
class _Limit:
    """A number of requests that doubles again and again."""

    start: float
    since: float
    doubling: float  # seconds

    def at(self, now: float) -> float:
        return self.start * math.pow(2.0, min((now - self.since) / self.doubling, 60.0))


@dataclass(eq=False)
class Endpoint:
    """One server. Its counts are there for callers to show; only this room writes them."""

    url: str  # up to and including /v1
    key_env: str = server.KEY  # the environment variable that holds its key
    transport: httpx.AsyncBaseTransport | None = None  # what stands in for the network
    answered: int = 0  # requests
    failed: int = 0  # requests, each of them asked again
    in_flight: int = 0
    said: str = ""  # how it failed last
    failing_since: float | None = field(default=None, repr=False)  # the first failure since it last spoke sense
    spoke_at: float = field(default=-1.0, repr=False)  # its last answer, or refusal of a question
    paused_until: float = field(default=-1.0, repr=False)
    broken: bool = field(default=False, repr=False)  # left alone until a probe says that it lives
    one_by_one: bool = field(default=False, repr=False)  # it ignores n
    refusals: list[Refused] = field(default_factory=list, repr=False)  # since its last answer
    _in_row: int = field(default=0, repr=False)  # failures since it last spoke sense
    _pauses: int = field(default=0, repr=False)  # likewise
    _lone: int = field(default=0, repr=False)  # replies in a row with one choice, where several were asked for
    _sent_away: int = field(default=0, repr=False)  # requests since its share was cut last
    _taken: int = field(default=0, repr=False)  # likewise
    _crowd: _Limit | None = field(default=None, repr=False)  # after it said that it was crowded
    _ramp: _Limit | None = field(default=None, repr=False)  # after a pause

    @functools.cached_property
    def shown(self) -> str:
        """Its address as it may be shown and stored."""
        return server.shown(self.url)

    @property
    def limited(self) -> bool:
        """Whether its share grows with time."""
        return self._crowd is not None or self._ramp is not None

    def room(self, now: float, concurrency: int) -> float:
        """How many requests it may have in flight now, 0 while it is left alone."""
        if self.broken or now < self.paused_until:
            return 0.0
        return min([float(concurrency), *(limit.at(now) for limit in (self._crowd, self._ramp) if limit)])

    def speaks(self, now: float) -> None:
        """Note an answer, or a refusal of one question: it lives."""
        self.failing_since, self.spoke_at = None, now
        self._in_row = self._pauses = 0
        self._taken += 1

    def counts(self, given: int, asked: int) -> None:
        """Note how many choices it gave of those asked for."""
        self._lone = self._lone + 1 if given == 1 < asked else 0 if asked > 1 else self._lone
        self.one_by_one = self.one_by_one or self._lone >= _LONE

    def fails(self, now: float, trouble: Trouble, began: float) -> None:
        """Note a failure of a request that was sent at `began`."""
        self.failed += 1
        self._in_row += 1
        self.said = trouble.words
        self.failing_since = now if self.failing_since is None else self.failing_since
        if trouble.wait:
            self.paused_until = max(self.paused_until, now + min(trouble.wait, server.LONGEST_WAIT))
        # Those that were under way when its share was cut say nothing new, and one in ten is no crowd.
        if trouble.crowded and (self._crowd is None or began > self._crowd.since):
            self._sent_away += 1
            if self._sent_away > max(2.0, 0.1 * self._taken):
                self._crowd = _Limit(max(1.0, 0.7 * (self.in_flight + 1)), now, 30.0)
                self._sent_away = self._taken = 0
        if self._in_row >= _BROKEN and not self.broken:
            self.left_alone(now)

    def left_alone(self, now: float) -> None:
        """Nothing is sent until a probe succeeds; each time for longer."""
        pause = _PROBES[min(self._pauses, len(_PROBES) - 1)] * server.jitter(self._pauses, self.url)
        self.broken, self.paused_until = True, max(self.paused_until, now + pause)
        self._pauses += 1

    def reopens(self, now: float) -> None:
        """It is used again: four requests, twice as many each second."""
        self.broken, self._in_row, self._ramp = False, 0, _Limit(4.0, now, 1.0)


class Lines:
    """The connections to one server, each for one request at a time.

    One pool for all would look at each of its connections for each request: with hundreds that takes longer than the
    request itself.
    """

    def __init__(self, endpoint: Endpoint, secret: str, timeout: float) -> None:
        own = endpoint.transport
        self._url = "http://in.process" if own else endpoint.url.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "algorist", **server.authorisation(secret)}
        times = httpx.Timeout(timeout, connect=min(timeout, _CONNECT))
        self._extensions = {"timeout": times.as_dict()}
        self._verify = httpx.create_ssl_context(verify=self._url.startswith("https"))
        self._proxy = None if own else _proxy(httpx.URL(self._url))
        self._urls: dict[str, httpx.URL] = {}
        self._free: list[httpx.AsyncBaseTransport] = []
        self._own = own

    async def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """One request, its response read to the end. Raises httpx.RequestError."""
        if path not in self._urls:  # reading an address takes as long as the rest of a request
            self._urls[path] = httpx.URL(self._url + path)
        url, headers = self._urls[path], self._headers
        request = httpx.Request(method, url, headers=headers, json=body, extensions=self._extensions)
        line = self._own or (self._free.pop() if self._free else self._open())
        try:
            response = await line.handle_async_request(request)
            response.request = request  # it is named in what reading may raise
            try:
                await response.aread()
            finally:
                await response.aclose()
            return response
        finally:
            if self._own is None:
                self._free.append(line)

    async def close(self) -> None:
        """Close all connections; no request may be under way."""
        while self._free:
            await self._free.pop().aclose()

    def _open(self) -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(verify=self._verify, proxy=self._proxy, socket_options=_KEEPALIVE)


def _proxy(url: httpx.URL) -> str | None:
    """The proxy that the environment names for an address, as httpx would find it by itself."""
    if urllib.request.proxy_bypass(f"{url.host}:{url.port}" if url.port else url.host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


def allow_files(concurrency: int) -> None:
    """Raise the limit on open files where it is too low for so many connections, as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = concurrency + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
