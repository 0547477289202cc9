"""The HTTP endpoints. They answer from memory; only a look-up of a request asks AWS."""

import asyncio
import hmac
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from dispatcher.errors import DispatcherError
from dispatcher.policy.decode import REQUEST_ID_MAX, is_request_id

WRITES_BURST, WRITES_PER_SECOND = 20, 1.0
"""Whoever reports capacity needs far less."""
CONNECTIONS_MAX = 100
"""Open at once: the oldest gives way, so that neither half a request nor a thousand keep a health check out."""
BODY_BYTES_MAX = 4096
STREAMS_MAX = 20
"""Pages that are open at once."""
STREAM_WRITE_S = 10.0  # whoever does not read for so long has gone
STREAM_QUIET_S = 2.0  # a page that hears nothing for longer says so
LOOK_UP_S = 5.0
_PAGE = Path(__file__).with_name("page")
_FILES = {"": "index.html", "page.css": "page.css", "page.js": "page.js"}
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "dispatcher",  # and not of which version of what it is made
}
"""Of every answer: nothing from elsewhere, nothing inline, in nobody's frame."""
SAID_S = 0.5
"""Pages that are woken by one sample are told the same text."""


async def _never() -> None:
    await asyncio.Event().wait()


async def _nowhere(*_: object) -> None:
    return None


class Limit:
    """So many at once, and so many a second."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._left, self._since = float(WRITES_BURST), now()

    def admits(self) -> bool:
        """Whether one more is in time."""
        now = self._now()
        self._left = min(WRITES_BURST, self._left + (now - self._since) * WRITES_PER_SECOND)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(frozen=True, slots=True)
class Probes:
    """What the endpoints say: `stuck` and `unready` give reasons, none meaning well."""

    stuck: Callable[[], list[str]]
    unready: Callable[[], list[str]]
    status: Callable[[], Mapping[str, Any]]
    registry: CollectorRegistry
    refresh: Callable[[], None]  # brings the gauges up to date before they are read
    token: str | None = None  # whoever shows it may report capacity; None: nobody may
    put_capacity: Callable[[str, float], Awaitable[float | None]] = _nowhere
    """Returns the capacity that is in force then; None: there is no such Region. Raises DispatcherError."""
    next_sample: Callable[[], Awaitable[None]] = _never  # returns when there is something new to say
    find: Callable[[str], Awaitable[Mapping[str, Any] | None]] = _nowhere
    """Returns what happened to a request; None: nobody knows of it. Raises DispatcherError."""
    holding: Callable[[], str | None] = lambda: None  # why nothing is received on purpose
    writes: Limit = field(default_factory=Limit)  # of whoever shows the token
    guesses: Limit = field(default_factory=Limit)  # of everybody else: they cannot use up the others' turns
    look_ups: Limit = field(default_factory=Limit)
    _streams: set[asyncio.Task[Any]] = field(default_factory=set)
    _said: list[tuple[float, bytes]] = field(default_factory=list)  # the last text for the pages, and when it was made

    def routes(self) -> list[web.RouteDef]:
        return [
            *(web.get(f"/{path}", self._page) for path in _FILES),
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
            web.get("/status", self._status),
            web.get("/events", self._events, allow_head=False),
            web.get("/requests", self._request),
            web.post("/regions/{region}/capacity", self._capacity),
        ]

    @asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen, and give the port (the system's choice for 0). Raises OSError if it is taken."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.add_routes(self.routes())
        app.on_response_prepare.append(_harden)
        app.on_shutdown.append(self._end_streams)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        handlers = runner.server
        if handlers is None:
            raise RuntimeError("setup made no server")

        def connected() -> asyncio.BaseProtocol:
            for oldest in handlers.connections[: 1 - CONNECTIONS_MAX]:
                oldest.force_close()
            return handlers()

        try:
            async with await asyncio.get_running_loop().create_server(connected, host, port) as server:
                yield server.sockets[0].getsockname()[1]
        finally:
            await runner.cleanup()

    async def _page(self, request: web.Request) -> web.Response:
        """A page for people: what is happening now, live. It needs its two files, and nothing from elsewhere."""
        file = _PAGE / _FILES[request.path[1:]]
        return web.Response(text=file.read_text(encoding="utf-8"), content_type=_KINDS[file.suffix], charset="utf-8")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """The same as server-sent events, once a second; twenty may listen."""
        task = asyncio.current_task()
        if task is None or len(self._streams) >= STREAMS_MAX:
            return _refusal(503, f"{STREAMS_MAX} pages are open already")
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        self._streams.add(task)
        try:
            await stream.prepare(request)
            await stream.write(b"retry: 1000\n\n")
            while True:
                async with asyncio.timeout(STREAM_WRITE_S):
                    await stream.write(self._news())
                with suppress(TimeoutError):  # nothing is sampled while it starts
                    async with asyncio.timeout(STREAM_QUIET_S):
                        await self.next_sample()
        except (ConnectionError, TimeoutError):
            return stream  # nobody reads any more
        finally:
            self._streams.discard(task)

    def _news(self) -> bytes:
        now = asyncio.get_running_loop().time()
        if not self._said or now - self._said[0][0] > SAID_S:
            self._said[:] = [(now, f"data: {json.dumps(self.status())}\n\n".encode())]
        return self._said[0][1]

    async def _end_streams(self, _: web.Application) -> None:
        for stream in list(self._streams):
            stream.cancel()
            with suppress(asyncio.CancelledError):
                await stream

    async def _request(self, request: web.Request) -> web.Response:
        """`?id=…`: where a request is, and what happened to it; 404 if the ledger knows none.

        The only answer that AWS is asked for: twenty at once and one a second (429).
        """
        request_id = request.query.get("id", "")
        if not is_request_id(request_id):  # the dispatcher's own items hold a control character
            return _refusal(400, f"say which: /requests?id=…, 1 to {REQUEST_ID_MAX} printable characters")
        if not self.look_ups.admits():
            return _refusal(429, f"too often: {WRITES_BURST} at once and {WRITES_PER_SECOND:g} a second are answered")
        try:
            async with asyncio.timeout(LOOK_UP_S):
                found = await self.find(request_id)
        except TimeoutError:
            return _refusal(503, f"the ledger did not answer within {LOOK_UP_S:g} s; ask again")
        except DispatcherError as fault:
            return _refusal(503, f"the ledger cannot be asked now: {fault}")
        if found is None:
            return _refusal(404, "the ledger knows no such request: not received yet, rejected unclaimed, or forgotten")
        return web.json_response(found)

    async def _healthz(self, _: web.Request) -> web.Response:
        """200 while every loop beats; 503 with the ones that do not. Never asks AWS."""
        return _verdict(self.stuck())

    async def _readyz(self, _: web.Request) -> web.Response:
        """200 once master queue and ledger have answered and a depth was read, until it drains; else 503 and why.

        Holding is ready, and `holding` says why: the process does what it should. It tells of the start; `/status` says
        whether AWS answers.
        """
        return _verdict(self.unready(), holding=self.holding())

    async def _metrics(self, request: web.Request) -> web.Response:
        """Prometheus's text, or OpenMetrics on request."""
        self.refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self.registry), headers={"Content-Type": content_type})

    async def _status(self, _: web.Request) -> web.Response:
        """JSON: state, whether and why it holds, policy in force, all that a choice goes by, totals, recent choices."""
        return web.json_response(self.status())

    async def _capacity(self, request: web.Request) -> web.Response:
        """Takes `{"capacity": 0.25}`, the part of the Region's usual workers that is left, 0 to 1.

        Answers what is in force then; 503 if no process took it. Needs `Authorization: Bearer` and
        DISPATCHER_HTTP_TOKEN; twenty at once and one a second are taken (429).
        """
        if self.token is None:
            return _refusal(403, "writing is off: set DISPATCHER_HTTP_TOKEN")
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        right = hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), self.token.encode())
        if not (self.writes if right else self.guesses).admits():
            return _refusal(429, f"too often: {WRITES_BURST} at once and {WRITES_PER_SECOND:g} a second are taken")
        if not right:
            return _refusal(401, "show the token: Authorization: Bearer TOKEN")
        try:
            said = json.loads(await request.text())
            left = float(said["capacity"]) if not isinstance(said["capacity"], bool) else math.nan
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            left = math.nan
        if not 0 <= left <= 1:
            return _refusal(400, 'say {"capacity": 0.25}: the part of the usual workers that is left, 0 to 1')
        region = request.match_info["region"]
        try:
            capacity = await self.put_capacity(region, left)
        except DispatcherError as fault:
            return _refusal(503, str(fault))
        if capacity is None:
            return _refusal(404, f"no Region {region[:64]!r} in DISPATCHER_REGIONS")
        return web.json_response({"region": region, "capacity": round(capacity, 3)})


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_SAFE)


def _refusal(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


def _verdict(reasons: list[str], **more: str | None) -> web.Response:
    return web.json_response({"ok": not reasons, "reasons": reasons, **more}, status=503 if reasons else 200)
