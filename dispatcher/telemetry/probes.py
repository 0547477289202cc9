"""The HTTP endpoints. They answer from memory and never call AWS."""

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
"""Of each client's address: a token is not guessed at that rate, and whoever reports capacity needs far less."""
CLIENTS_MAX = 1000  # remembered
BODY_BYTES_MAX = 4096
_PAGE = Path(__file__).with_name("page.html")


class Limit:
    """So many at once, and so many a second, for each client."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._left: dict[str, tuple[float, float]] = {}  # by client: what is left, and when that was so

    def admits(self, client: str) -> bool:
        """Whether one more write may be tried now."""
        now = self._now()
        left, since = self._left.pop(client, (float(WRITES_BURST), now))
        left = min(WRITES_BURST, left + (now - since) * WRITES_PER_SECOND)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > CLIENTS_MAX:
            del self._left[next(iter(self._left))]  # whoever was silent for longest
        return left >= 1


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
    writes: Limit = field(default_factory=lambda: Limit(time.monotonic))

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
        try:
            await web.TCPSite(runner, host, port).start()
            yield runner.addresses[0][1]
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
        if not self.writes.admits(request.remote or ""):
            return _refusal(429, f"too often: {WRITES_BURST} at once and {WRITES_PER_SECOND:g} a second are taken")
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), self.token.encode()):
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
