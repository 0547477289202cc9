"""Session and clients; the only module that knows which SDK makes the calls.

One session for the process; one client for each service, Region and purpose, made at the start and closed at the end.
Everything that decides how a call behaves is said out loud here: timeouts, attempts, pool sizes, keep-alive, Region.
Certificate authorities are read once, whoever makes the calls.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from email.utils import parsedate_to_datetime
from functools import lru_cache
from random import Random
from typing import Any, Literal

import aioboto3
import aiobotocore.session
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError
from botocore.utils import get_environ_proxies

from dispatcher import __version__
from dispatcher.aws.faults import classify
from dispatcher.aws.lean import LeanClient
from dispatcher.aws.posts import Http
from dispatcher.clock import Clock
from dispatcher.errors import Cause, RefusedError
from dispatcher.model import AwsClient, Region
from dispatcher.telemetry.metrics import ANSWERED, RETRIED, CallSeries, Metrics

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 5.0

Service = Literal["sqs", "dynamodb"]
Around = Callable[[str, str, Region], AbstractContextManager[Any]]
"""What is entered for each call: service, operation, Region."""


def plainly(_service: str, _operation: str, _region: Region) -> AbstractContextManager[Any]:
    return _NOTHING


_NOTHING = nullcontext()


class _Limits:
    """Ends calls that take too long. All may take equally long: the oldest is due first, and one timer serves all."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[asyncio.Timeout, float] = {}  # when (loop time), the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> asyncio.Timeout:
        """Return what a call is to be made in; give it back with `end`."""
        loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)
        self._due[limit] = loop.time() + self._seconds
        self._timer = self._timer or loop.call_later(self._seconds, self._ring)
        return limit

    def end(self, limit: asyncio.Timeout) -> None:
        self._due.pop(limit, None)

    def _ring(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        for limit, due in list(self._due.items()):
            if due > loop.time():
                self._timer = loop.call_at(due, self._ring)
                return
            del self._due[limit]
            limit.reschedule(due)


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
        around: Around = plainly,
    ) -> None:
        self._client = client
        self._service = service
        self.region = region
        self._clock = clock
        self._metrics = metrics
        self._limits = _Limits(timeout_s)
        self._around = around
        self._series: dict[str, CallSeries] = {}  # of each operation

    def prepare(self, *operations: str) -> None:
        """Show the series of these before they are first made."""
        for operation in operations:
            self._series_of(operation)

    def _series_of(self, operation: str) -> CallSeries:
        known = self._series.get(operation)
        if known is None:
            known = self._series[operation] = self._metrics.of_call(self._service, operation, self.region)
        return known

    @property
    def endpoint(self) -> str:
        """Where the calls go."""
        return str(self._client.meta.endpoint_url)

    async def __call__(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        """Return the answer; raise RefusedError or AmbiguousError. A cancellation leaves the call's end unknown."""
        series = self._series_of(operation)
        started, asked_at, limit = time.perf_counter(), self._clock.local(), self._limits.begin()
        outcome: str = Cause.AMBIGUOUS
        metadata: Mapping[str, Any] = {}
        try:
            with self._around(self._service, operation, self.region):
                async with limit:
                    call = getattr(self._client, operation)(**parameters)
                    parameters.clear()  # a batch's hundred objects are let go as soon as they are written out
                    answer: Mapping[str, Any] = await call
            metadata = answer.get("ResponseMetadata") or {}
            outcome = ANSWERED
        except Exception as fault:  # an answer that the SDK cannot read is an answer lost
            if isinstance(fault, ClientError):
                metadata = fault.response.get("ResponseMetadata") or {}
            known = classify(fault)
            outcome = known.cause
            try:
                raise known from fault
            finally:
                del known  # or its own traceback would hold it, and a batch's bodies, until the collector looks
        finally:
            self._limits.end(limit)
            series.seconds.observe(time.perf_counter() - started)
            series.requests[outcome].inc()
            if retries := metadata.get("RetryAttempts"):
                series.requests[RETRIED].inc(retries)
            self._learn_time(metadata, asked_at)
        return answer

    async def until(self, waiter: str, **parameters: Any) -> None:
        """Wait for one of the SDK's waiters."""
        await self._client.get_waiter(waiter).wait(**parameters)

    def _learn_time(self, metadata: Mapping[str, Any], asked_at: float) -> None:
        said = (metadata.get("HTTPHeaders") or {}).get("date")
        if said and (date := _epoch_s(said)):
            self._clock.observe(date, asked_at, self._clock.local())


@lru_cache(maxsize=16)
def _epoch_s(date: str) -> float | None:
    """Of an HTTP date; None if it is none. A second's answers all say the same one."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


class Clients:
    """Makes Callers; leaving the context closes them all. End every task that calls before that."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        around: Around = plainly,
        *,
        kind: AwsClient = AwsClient.SDK,
        validates: bool = False,
    ) -> None:
        """`validates`: the SDK looks at each call's parameters first, which takes a quarter of a batch's time; tests
        have it look.
        """
        self.clock = clock
        self._metrics = metrics
        self._around = around
        self._kind = kind
        self._validates = validates
        try:
            self._core = aiobotocore.session.get_session()
            self._session = aioboto3.Session(botocore_session=self._core)
            # in full, the SDK puts it together twice a call
            self._user_agent = f"{self._core.user_agent()} regional-dispatcher/{__version__}"
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
            user_agent=self._user_agent,
            parameter_validation=self._validates,
            # said here, since merging configs would drop it: AioConfig.merge of 2.25.1
            http_session_cls=Http,  # type: ignore[arg-type]  # made and asked like theirs
        )
        opening = self._session.client(service, region_name=region, config=config)
        try:
            client = await self._stack.enter_async_context(opening)
            if self._kind is AwsClient.LEAN:
                client = await self._lean(client, pool, attempts, read_timeout_s)
        except (BotoCoreError, ValueError) as fault:
            raise RefusedError(Cause.REFUSED, f"no client for {service} in {region}: {fault}") from fault
        total = total_timeout_s or attempts * (CONNECT_TIMEOUT_S + read_timeout_s) + 2.0
        return Caller(client, service, region, self.clock, self._metrics, total, self._around)

    async def _lean(self, sdk: Any, pool: int, attempts: int, read_timeout_s: float) -> LeanClient:
        http = Http(
            # an only try has the whole call's limit, and needs no timers beside that one
            timeout=(CONNECT_TIMEOUT_S, read_timeout_s if attempts > 1 else None),
            proxies=get_environ_proxies(sdk.meta.endpoint_url),
            verify=self._core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True,
            max_pool_connections=pool,
        )
        await self._stack.enter_async_context(http)
        return LeanClient(
            sdk,
            http,
            await self._core.get_credentials(),
            self.clock,
            user_agent=f"{self._user_agent} {self._core.user_agent_extra}",  # as the SDK ends it
            attempts=attempts,
            random=Random(),
        )
