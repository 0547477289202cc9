"""The HTTP endpoints. They answer from memory and never call AWS."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True, slots=True)
class Probes:
    """What the endpoints say: `stuck` and `unready` give reasons, none meaning well."""

    stuck: Callable[[], list[str]]
    unready: Callable[[], list[str]]
    status: Callable[[], Mapping[str, Any]]
    registry: CollectorRegistry
    refresh: Callable[[], None]  # brings the gauges up to date before they are read

    @asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen, and give the port (the system's choice for 0). Raises OSError if it is taken."""
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._status)
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


def _verdict(reasons: list[str]) -> web.Response:
    return web.json_response({"ok": not reasons, "reasons": reasons}, status=503 if reasons else 200)
