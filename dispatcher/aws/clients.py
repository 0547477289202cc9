"""Session and clients; the only module that knows which SDK makes the calls.

One session for the process; one client for each service, Region and purpose, made at the start and closed at the end.
Everything that decides how a call behaves is said out loud here: timeouts, attempts, pool sizes, keep-alive, Region.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import BotoCoreError, ClientError

from dispatcher import __version__
from dispatcher.aws.faults import classify
from dispatcher.clock import Clock
from dispatcher.errors import Cause, RefusedError
from dispatcher.model import Region
from dispatcher.telemetry.metrics import ANSWERED, RETRIED, Metrics

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 5.0

Service = Literal["sqs", "dynamodb"]
Around = Callable[[str, str, Region], AbstractContextManager[Any]]
"""What is entered for each call: service, operation, Region."""


def _plainly(_service: str, _operation: str, _region: Region) -> AbstractContextManager[Any]:
    return _NOTHING


_NOTHING = nullcontext()


class HostCheckingSession(AIOHTTPSession):
    """aiobotocore before 3.9.0 leaves host names to urllib3, which is not there: any trusted certificate would do."""

    _max_pool_connections: int  # theirs, which the stubs leave out
    _connector_args: dict[str, Any]

    def _get_ssl_context(self) -> ssl.SSLContext:
        context: ssl.SSLContext = super()._get_ssl_context()  # type: ignore[misc]  # as above
        context.check_hostname = True
        return context

    async def send(self, request: Any) -> Any:
        self._plain = str(request.url).startswith("http://")
        return await super().send(request)

    def _create_connector(self, proxy_url: str | None) -> aiohttp.TCPConnector:
        """An emulator without TLS needs no certificates, and reading them costs more than its first calls."""
        if self._plain and not proxy_url:
            return aiohttp.TCPConnector(
                limit=self._max_pool_connections, **self._connector_args
            )  # verifies, if it must
        connector: aiohttp.TCPConnector = super()._create_connector(proxy_url)  # type: ignore[misc]  # private, as above
        return connector


class Caller:
    """One client. Each call is bounded in time, measured, and fails only with an AwsError."""

    def __init__(
        self,
        client: Any,
        service: Service,
        region: Region,
        clock: Clock,
        metrics: Metrics,
        timeout_s: float,
        around: Around = _plainly,
    ) -> None:
        self._client = client
        self._service = service
        self.region = region
        self._clock = clock
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._around = around

    def prepare(self, *operations: str) -> None:
        for operation in operations:
            self._metrics.prepare_call(self._service, operation, self.region)

    @property
    def endpoint(self) -> str:
        """Where the calls go."""
        return str(self._client.meta.endpoint_url)

    async def __call__(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        """Return the answer; raise RefusedError or AmbiguousError. A cancellation leaves the call's end unknown."""
        started, asked_at = time.perf_counter(), self._clock.local()
        outcome: str = Cause.AMBIGUOUS
        metadata: Mapping[str, Any] = {}
        try:
            with self._around(self._service, operation, self.region):
                async with asyncio.timeout(self._timeout_s):
                    answer: Mapping[str, Any] = await getattr(self._client, operation)(**parameters)
            metadata = answer.get("ResponseMetadata") or {}
            outcome = ANSWERED
        except Exception as fault:  # an answer that the SDK cannot read is an answer lost
            if isinstance(fault, ClientError):
                metadata = fault.response.get("ResponseMetadata") or {}
            known = classify(fault)
            outcome = known.cause
            raise known from fault
        finally:
            self._metrics.observe_call(self._service, operation, self.region, time.perf_counter() - started)
            series = (self._service, operation, self.region)
            self._metrics.aws_requests.labels(*series, outcome).inc()
            self._metrics.aws_requests.labels(*series, RETRIED).inc(metadata.get("RetryAttempts") or 0)
            self._learn_time(metadata, asked_at)
        return answer

    async def until(self, waiter: str, **parameters: Any) -> None:
        """Wait for one of the SDK's waiters."""
        await self._client.get_waiter(waiter).wait(**parameters)

    def _learn_time(self, metadata: Mapping[str, Any], asked_at: float) -> None:
        said = (metadata.get("HTTPHeaders") or {}).get("date")
        if said:
            try:
                date = parsedate_to_datetime(said).timestamp()
            except ValueError:
                return
            self._clock.observe(date, asked_at, self._clock.local())


class Clients:
    """Makes Callers; leaving the context closes them all. End every task that calls before that."""

    def __init__(self, clock: Clock, metrics: Metrics, around: Around = _plainly) -> None:
        self.clock = clock
        self._metrics = metrics
        self._around = around
        try:
            self._session = aioboto3.Session()
        except (BotoCoreError, ValueError) as fault:
            raise RefusedError(Cause.REFUSED, f"the AWS SDK cannot start: {fault}") from fault
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Clients":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def open(
        self,
        service: Service,
        region: Region,
        *,
        pool: int,
        attempts: int,
        read_timeout_s: float = READ_TIMEOUT_S,
        total_timeout_s: float | None = None,
    ) -> Caller:
        """Return a client of `service` in `region`.

        `attempts` counts the SDK's tries, the first included: 1 where a repeated call could do harm (a receive, whose
        lost messages wait for a visibility timeout; a send, which would go twice).
        """
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_timeout_s,
            max_pool_connections=pool,
            retries={"mode": "standard", "total_max_attempts": attempts},
            user_agent_extra=f"regional-dispatcher/{__version__}",
            http_session_cls=HostCheckingSession,  # merging configs would drop it: AioConfig.merge of 2.25.1
        )
        opening = self._session.client(service, region_name=region, config=config)
        try:
            client = await self._stack.enter_async_context(opening)
        except (BotoCoreError, ValueError) as fault:
            raise RefusedError(Cause.REFUSED, f"no client for {service} in {region}: {fault}") from fault
        total = total_timeout_s or attempts * (CONNECT_TIMEOUT_S + read_timeout_s) + 2.0
        return Caller(client, service, region, self.clock, self._metrics, total, self._around)
