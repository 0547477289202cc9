"""The HTTP endpoints. They answer from memory and never call AWS."""

import asyncio
import hmac
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

WRITES_BURST, WRITES_PER_SECOND = 20, 1.0
"""Whoever reports capacity needs far less."""
CONNECTIONS_MAX = 100
"""Open at once: the oldest gives way, so that neither half a request nor a thousand keep a health check out."""
BODY_BYTES_MAX = 4096
_PAGE = Path(__file__).with_name("page.html")


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
    put_capacity: Callable[[str, float], float | None] = lambda _region, _left: None
    """Returns the capacity that is in force then; None: there is no such Region."""
    writes: Limit = field(default_factory=Limit)  # of whoever shows the token
    guesses: Limit = field(default_factory=Limit)  # of everybody else: they cannot use up the others' turns

    @asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen, and give the port (the system's choice for 0). Raises OSError if it is taken."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_get("/", self._page)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._status)
        app.router.add_post("/regions/{region}/capacity", self._capacity)
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

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=_PAGE.read_text(encoding="utf-8"), content_type="text/html")

    async def _healthz(self, _: web.Request) -> web.Response:
        return _verdict(self.stuck())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(self.unready())

    async def _metrics(self, request: web.Request) -> web.Response:
        self.refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self.registry), headers={"Content-Type": content_type})

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(self.status())

    async def _capacity(self, request: web.Request) -> web.Response:
        """Take `{"capacity": 0.25}`: the part of a Region's usual workers that is left, 0 to 1."""
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
        capacity = self.put_capacity(region, left)
        if capacity is None:
            return _refusal(404, f"no Region {region[:64]!r} in DISPATCHER_REGIONS")
        return web.json_response({"region": region, "capacity": round(capacity, 3)})


def _refusal(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


def _verdict(reasons: list[str]) -> web.Response:
    return web.json_response({"ok": not reasons, "reasons": reasons}, status=503 if reasons else 200)
