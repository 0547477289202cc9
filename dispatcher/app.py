"""Composition root: builds clients, queues, ledger and loops in the order of their needs; supervises; drains."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from dispatcher import __version__
from dispatcher.aws.clients import Caller, Clients, plainly
from dispatcher.aws.fleet import FleetItem
from dispatcher.aws.ledger import Ledger, read_item
from dispatcher.aws.master import MasterQueue
from dispatcher.aws.queues import lag_s, read_depth, read_depths, redrive_target, size_limit
from dispatcher.aws.regional import SendingQueue
from dispatcher.board import READINGS_PER_TTL, Board
from dispatcher.clock import Clock
from dispatcher.errors import AwsError, Cause, DispatcherError, Stage
from dispatcher.gate import Gate
from dispatcher.inflight import InFlight
from dispatcher.lifecycle import Lifecycle, Phase
from dispatcher.loops.depths import DepthRefresher, QueueGauges
from dispatcher.loops.fleet import FleetReporter
from dispatcher.loops.intake import Intake
from dispatcher.loops.interruptions import InterruptionWatch
from dispatcher.loops.pulse import LedgerWatch, Pulse
from dispatcher.loops.visibility import VisibilityExtender
from dispatcher.model import Depth, Priority, Region
from dispatcher.pipeline import Pipeline, Terms
from dispatcher.policy.backoff import backoff_s
from dispatcher.policy.breaker import Breaker
from dispatcher.policy.envelope import BYTES_MAX
from dispatcher.policy.life import life, readable
from dispatcher.rescue import Rescue, visibility_s
from dispatcher.settings import Settings, region_of
from dispatcher.telemetry import logs
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.live import Live
from dispatcher.telemetry.metrics import Metrics
from dispatcher.telemetry.probes import Probes

if TYPE_CHECKING:
    from dispatcher.tracing import Tracing

log = structlog.get_logger()

LAST_WORD_S = 2.0  # to tell the other dispatchers that this one ends
POLL_MARGIN_S = 2.0  # between an open poll's end and a drain's deadline
YOUNG_MAX = 20_000  # objects until the collector looks: those of the messages in flight, which are no garbage
POOL = 50  # connections a client: more than its lanes can use at once, so that nothing waits for one


class _Loop(Protocol):
    async def run(self) -> None: ...


class _Adapter(AbstractAsyncContextManager[Any], Protocol):
    def hurry(self) -> None: ...


class _StoppedEarly(Exception):  # noqa: N818  not an error: there was nothing to drain
    """A signal came before what we need had answered."""


class StartError(DispatcherError):
    """What the dispatcher needs is not there; the message says what, and what to do."""


async def run(settings: Settings, *, traced: bool = False) -> None:
    """Run until a signal drained it. Raises StartError, and anything that a loop did not expect."""
    tracing = None
    if traced:
        from dispatcher.tracing import Tracing  # an extra, which need not be installed

        tracing = Tracing.by_otlp(settings.home_region, settings.revision)
    try:
        await App(settings, tracing=tracing).run()
    except _StoppedEarly as what:
        log.info("process.stopped", hint=f"before the {what} had answered")
    finally:
        if tracing:
            await within(LAST_WORD_S, tracing.close)


async def within(seconds: float, close: Callable[[], None]) -> None:
    """Let `close` block a thread for so long, and then go on without it: the orchestrator does not wait for ever."""
    closed, loop = asyncio.Event(), asyncio.get_running_loop()

    def run() -> None:
        close()
        with suppress(RuntimeError):  # the loop may be closed by then
            loop.call_soon_threadsafe(closed.set)

    Thread(target=run, name="last traces", daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await closed.wait()


class App:
    """What lives as long as the process is built here; what needs a client, in `work`."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.now = asyncio.get_running_loop().time
        self.started_at = self.now()
        self.settings = settings
        self.tracing = tracing
        self.home = Region(settings.home_region)
        self.terms = Terms(settings.visibility_seconds, settings.claim_lease_seconds)
        self.random = random or Random()
        self.clock = clock or Clock()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time and open files, under their usual names
        self.metrics = Metrics(
            self.registry,
            home=self.home,
            regions=settings.regions,
            policy=settings.routing_policy,
            version=__version__,
            revision=settings.revision,
            in_flight_limit=settings.max_in_flight,
        )
        self.lifecycle = Lifecycle()
        self.heartbeats = Heartbeats(self.now)
        self.in_flight = InFlight(settings.max_in_flight)
        self.ledger_breaker = Breaker()
        self.reading_s = settings.depth_ttl_seconds / READINGS_PER_TTL
        late_s = max(lag_s(rules.queue_url) for rules in settings.regions.values())
        self.board = Board.of(settings, lag_s=late_s, now=self.now, random=self.random)
        self.gate = Gate(self.board, self.ledger_breaker, self.in_flight)
        self.live = Live(self.metrics, self.home, self.now)
        logs.tell_warnings_to(self.live.warn)
        self.pulse = Pulse(
            self.board,
            self.gate,
            self.in_flight,
            self.ledger_breaker,
            self.lifecycle,
            self.heartbeats,
            self.metrics,
            self.live,
        )
        self.table: Caller | None = None  # once there is one: for whoever asks where a request is
        self.answered: set[str] = set()  # of what readiness asks for
        self.bytes_max = BYTES_MAX  # of a message, that every queue takes
        self.troubles: dict[str, str] = {}  # what did not answer when it was asked last, and what AWS said of it

    async def run(self) -> None:
        gc.freeze()  # what is here now stays
        gc.set_threshold(YOUNG_MAX, 20, 50)
        async with AsyncExitStack() as stack:
            stack.enter_context(self.lifecycle.signals())
            await self._listen(stack)
            around = self.tracing.call if self.tracing else plainly
            clients = await stack.enter_async_context(
                Clients(self.clock, self.metrics, around, kind=self.settings.aws_client)
            )
            await self.work(clients)

    async def work(self, clients: Clients) -> None:
        """Take messages from the master queue to the Regions until drained."""
        settings = self.settings
        async with AsyncExitStack() as stack:
            # A drain waits for open polls: where it is short, polls must be too, or it would have to cut them off.
            wait_s = min(settings.poll_wait_seconds, max(0, int(settings.drain_timeout_seconds - POLL_MARGIN_S)))
            receiving = await clients.open(
                "sqs", self.home, pool=settings.pollers + 2, attempts=1, read_timeout_s=wait_s + 10.0
            )
            home = await clients.open("sqs", self.home, pool=POOL, attempts=3)
            table = self.table = await clients.open("dynamodb", self.home, pool=POOL, attempts=3)
            senders = {
                region: await self._sender(clients, region, len(rules.queue_urls))
                for region, rules in settings.regions.items()
            }
            for caller in (home, *senders.values()):
                caller.prepare("get_queue_attributes", "get_queue_url")

            ledger = Ledger(
                settings.ledger_table,
                table,
                clock=self.clock,
                metrics=self.metrics,
                retention_s=settings.ledger_retention_seconds,
                batching=settings.ledger_batching,
                learn=self._learn_of_ledger,
            )
            dead_letter_url = await self._check(home, ledger)
            await self._check_regions(senders)
            dead_letters = None
            if dead_letter_url:
                dead_letters = SendingQueue(dead_letter_url, await self._sender(clients, self.home))
            master = MasterQueue(
                settings.master_queue_url, receiving, home, wait_s=wait_s, visibility_s=settings.visibility_seconds
            )
            queues = {
                (region, url): SendingQueue(
                    url,
                    senders[region],
                    admits=partial(self.board.admits, region),
                    withdraw=partial(self.board.withdraw, region),
                    learn=partial(self.board.learn, region),
                )
                for region, rules in settings.regions.items()
                for url in rules.queue_urls
            }

            def regional(region: Region, priority: Priority) -> SendingQueue:
                rules = settings.regions[region]
                return queues[region, rules.queues.get(priority, rules.queue_url)]

            watches: list[_Loop] = []
            adapters: list[_Adapter] = [ledger, master, *queues.values(), *([dead_letters] if dead_letters else [])]
            for adapter in adapters:
                await stack.enter_async_context(adapter)

            pipeline = self._kind_of_pipeline()(
                ledger=ledger,
                master=master,
                regional=regional,
                dead_letters=dead_letters,
                board=self.board,
                terms=self.terms,
                clock=self.clock,
                metrics=self.metrics,
                random=self.random,
                fair=settings.fair_queues,
                bytes_max=self.bytes_max,
                gives_way=lambda: self.lifecycle.draining or self.in_flight.parking_full,
                chose=self.live.chose,
            )
            reporter = FleetReporter(
                self.board,
                self._watched("the ledger", FleetItem(settings.ledger_table, table, self.clock).exchange),
                self.metrics,
                self.heartbeats,
                self.now,
                self.random,
                self.reading_s,
            )
            intake = Intake(
                receive=self._watched("the master queue", master.receive),
                pipeline=pipeline,
                board=self.board,
                gate=self.gate,
                in_flight=self.in_flight,
                lifecycle=self.lifecycle,
                heartbeats=self.heartbeats,
                metrics=self.metrics,
                clock=self.clock,
                random=self.random,
                pollers=settings.pollers,
                poll_limit_s=wait_s + 60.0,
                drain_s=settings.drain_timeout_seconds,
            )
            if settings.interruption_queue_url:
                listening = await clients.open("sqs", self.home, pool=2, attempts=1, read_timeout_s=wait_s + 10.0)
                warnings = MasterQueue(
                    settings.interruption_queue_url,
                    listening,
                    home,
                    wait_s=wait_s,
                    visibility_s=settings.visibility_seconds,
                )
                adapters.append(await stack.enter_async_context(warnings))
                watches.append(
                    InterruptionWatch(
                        warnings.receive,
                        warnings.acknowledge,
                        {region: rules.instances for region, rules in settings.regions.items()},
                        self.board,
                        self.heartbeats,
                        self.metrics,
                        self.random,
                        wait_s + 60.0,
                        self.now,
                    )
                )
            if settings.rescue:
                hidden_s = visibility_s(self.terms)
                consumers = {
                    region: [
                        await stack.enter_async_context(
                            MasterQueue(url, senders[region], senders[region], wait_s=0, visibility_s=hidden_s)
                        )
                        for url in rules.queue_urls
                    ]
                    for region, rules in settings.regions.items()
                }
                adapters += [consumer for several in consumers.values() for consumer in several]
                watches.append(
                    Rescue(
                        ledger=ledger,
                        consumers=consumers.__getitem__,
                        regional=regional,
                        board=self.board,
                        lifecycle=self.lifecycle,
                        terms=self.terms,
                        clock=self.clock,
                        metrics=self.metrics,
                        heartbeats=self.heartbeats,
                        random=self.random,
                        fair=settings.fair_queues,
                        bytes_max=self.bytes_max,
                    )
                )
            loops: list[_Loop] = [
                *watches,
                VisibilityExtender(pipeline, self.in_flight, self.heartbeats, self.metrics),
                self._depth_refresher(senders),
                self._queue_gauges(home, senders, dead_letter_url),
                self.pulse,
                reporter,
                LedgerWatch(
                    ledger.ping, self.ledger_breaker, self.in_flight, self.heartbeats, self.metrics, self.random
                ),
            ]
            await self._supervise(intake, loops, adapters)
            with suppress(TimeoutError):  # the orchestrator does not wait for ever
                async with asyncio.timeout(LAST_WORD_S):
                    await reporter.report(gone=True)

    def _kind_of_pipeline(self) -> Callable[..., Pipeline]:
        if self.tracing is None:
            return Pipeline
        from dispatcher.tracing import TracedPipeline

        return partial(TracedPipeline, tracing=self.tracing)

    async def _listen(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        token = settings.http_token.get_secret_value() if settings.http_token else None
        probes = Probes(
            self.heartbeats.stuck,
            self._unready,
            self._status,
            self.registry,
            self.pulse.show,
            token,
            self._put_capacity,
            next_sample=self.live.next_sample,
            find=self._find,
            holding=self.gate.holding,
        )
        try:
            port = await stack.enter_async_context(probes.serve(settings.http_host, settings.http_port))
        except OSError as fault:
            raise StartError(
                f"cannot listen on {settings.http_host}:{settings.http_port} ({fault.strerror}); "
                "set DISPATCHER_HTTP_PORT or DISPATCHER_HTTP_HOST"
            ) from fault
        log.info("http.listening", host=settings.http_host, port=port)

    async def _supervise(self, intake: Intake, loops: Sequence[_Loop], adapters: Sequence[_Adapter]) -> None:
        """Run until drained. A loop that ends, or meets a fault that it did not name, ends the process."""
        if not self.lifecycle.draining:
            self.lifecycle.phase = Phase.RUNNING
        log.info("process.running", version=__version__, regions=list(self.settings.regions))
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(_for_ever(loop), name=type(loop).__name__) for loop in loops]
            background.append(group.create_task(self._hurry_when_draining(adapters), name="hurry"))
            await intake.run()
            for task in background:
                task.cancel()
        self.lifecycle.phase = Phase.STOPPED
        log.info("process.stopped", **self.live.totals())

    def _depth_refresher(self, senders: Mapping[Region, Caller]) -> DepthRefresher:
        reads = {
            region: partial(read_depths, senders[region], rules.queue_urls)
            for region, rules in self.settings.regions.items()
        }
        ttl_s = self.settings.depth_ttl_seconds
        return DepthRefresher(self.board, reads, self.metrics, self.heartbeats, self.clock, self.random, ttl_s)

    def _queue_gauges(self, home: Caller, senders: Mapping[Region, Caller], dead_letter_url: str | None) -> QueueGauges:
        reads: dict[tuple[str, Region], Callable[[], Awaitable[Depth | None]]] = {
            ("master", self.home): self._watched(
                "the depth of the master queue", partial(read_depth, home, self.settings.master_queue_url)
            )
        }
        if dead_letter_url:
            reads["master_dlq", self.home] = partial(read_depth, home, dead_letter_url)
        for region, rules in self.settings.regions.items():
            reads["regional_dlq", region] = _DeadLetterDepth(senders[region], rules.queue_url)
        return QueueGauges(reads, self.metrics, self.heartbeats, self.random, self.reading_s)

    async def _sender(self, clients: Clients, region: Region, queues: int = 1) -> Caller:
        timeout_s = self.terms.send_timeout_s
        return await clients.open(
            "sqs", region, pool=POOL * queues, attempts=1, read_timeout_s=timeout_s, total_timeout_s=timeout_s
        )

    async def _hurry_when_draining(self, adapters: Sequence[_Adapter]) -> None:
        await self.lifecycle.until_draining()
        for adapter in adapters:
            adapter.hurry()

    def _learn_of_ledger(self, succeeded: bool) -> None:
        if succeeded:
            self.answered.add("ledger")
            self.troubles.pop("the ledger", None)
            self.ledger_breaker.answered()
        self.ledger_breaker.record(succeeded, self.now())
        self.board.notify()

    async def _check(self, home: Caller, ledger: Ledger) -> str | None:
        """Wait until master queue and ledger answer; return the dead-letter queue's URL. Raises StartError."""
        settings = self.settings
        await self._first_answer(
            "master queue", "DISPATCHER_MASTER_QUEUE_URL", partial(size_limit, home, settings.master_queue_url)
        )
        self.answered.add("master queue")
        await self._first_answer("ledger", "DISPATCHER_LEDGER_TABLE", ledger.ping)
        variable = "DISPATCHER_DEAD_LETTER_QUEUE_URL, or the master queue's redrive policy"
        url = settings.dead_letter_queue_url
        if url is None:
            url = await self._first_answer(
                "dead-letter queue", variable, partial(redrive_target, home, settings.master_queue_url)
            )
        else:
            await self._first_answer("dead-letter queue", variable, partial(size_limit, home, url))
        if url is not None:
            with suppress(AwsError):  # its redrive policy may name one that we may not ask
                self._fit(await size_limit(home, url))
        else:
            log.warning(
                "dead_letter_queue.missing",
                hint="invalid messages stay in the master; set DISPATCHER_DEAD_LETTER_QUEUE_URL or a redrive policy",
            )
        return url

    def _fit(self, bytes_max: int) -> None:
        self.bytes_max = min(self.bytes_max, bytes_max)

    async def _check_regions(self, senders: Mapping[Region, Caller]) -> None:
        """Raise StartError for a regional queue that certainly does not exist; a Region that is down stops nobody."""

        async def ask(region: Region, url: str) -> None:
            try:
                self._fit(await size_limit(senders[region], url))
            except AwsError as fault:
                if fault.cause is Cause.MISSING:
                    there = region_of(url)
                    wrong = f"; its URL names {there}" if there not in (None, region) else ""
                    variable = f"DISPATCHER_REGIONS[{region}]"
                    raise StartError(f"the queue {url} does not exist in {region}{wrong}; check {variable}") from fault
                log.warning(
                    "start.region_unreachable", region=region, fault=str(fault), hint="it gets only probes until read"
                )

        asked = [ask(region, url) for region, rules in self.settings.regions.items() for url in rules.queue_urls]
        faults = [fault for fault in await asyncio.gather(*asked, return_exceptions=True) if fault]
        if faults:
            raise faults[0]

    async def _first_answer[T](self, what: str, variable: str, ask: Callable[[], Awaitable[T]]) -> T:
        attempt = 0
        while True:
            try:
                return await self._watched(f"the {what}", ask)()
            except AwsError as fault:
                if fault.cause is Cause.MISSING:
                    raise StartError(f"the {what} does not exist ({fault}); check {variable}") from fault
                self.metrics.error(Stage.LEDGER if what == "ledger" else Stage.RECEIVE, fault.cause)
                hint = "check credentials and the task role" if fault.cause is Cause.DENIED else "trying again"
                log.warning("start.waiting", on=what, fault=str(fault), hint=hint)
            await asyncio.sleep(backoff_s(attempt, self.random))
            attempt += 1
            if self.lifecycle.draining:
                raise _StoppedEarly(what)

    # --- what the endpoints say ---------------------------------------------------------------------------------

    def _unready(self) -> list[str]:
        reasons = [
            f"the {what} has not answered yet" for what in ("master queue", "ledger") if what not in self.answered
        ]
        if not self.board.any_depth_read():
            reasons.append("no Region's depth has been read yet")
        if self.lifecycle.draining:
            reasons.append("draining")
        return reasons

    def _status(self) -> Mapping[str, Any]:
        return {
            "version": __version__,
            "uptime_seconds": round(self.now() - self.started_at, 1),
            "state": self.lifecycle.phase,
            "holding": self.gate.holding(),
            "draining": self.lifecycle.draining,
            "policy": self.settings.routing_policy,
            "policy_in_force": self.board.policy,
            "model_error": round(self.board.model_error, 3),
            "dispatchers": self.board.dispatchers(),
            "regions": self.board.explain(),
            "in_flight": len(self.in_flight),
            "in_flight_limit": self.in_flight.limit,
            "ledger": self.ledger_breaker.state if "ledger" in self.answered else "unknown",
            "troubles": dict(self.troubles),
            "queues": {name: self.live.queue(name) for name in ("master", "master_dlq", "regional_dlq")},
            "totals": self.live.totals(),
            **self.live.explain(),
        }

    def _watched[**P, T](self, what: str, ask: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """`ask`, and say in `troubles` while it does not answer, also while there is no message that would need it."""

        async def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                answer = await ask(*args, **kwargs)
            except AwsError as fault:
                self.troubles[what] = str(fault)
                raise
            self.troubles.pop(what, None)
            return answer

        return watched

    async def _find(self, request_id: str) -> Mapping[str, Any] | None:
        """Return what happened to a request; None: nobody knows of it. Raises AwsError, StartError before the start."""
        if self.table is None:
            raise StartError("it has not started yet")
        item = await read_item(self.table, self.settings.ledger_table, request_id)
        if item is None:
            return None
        lines = [{"at": at, "what": what} for at, what in life(item)]
        return {"request_id": request_id, "state": item.get("state", "?"), "life": lines, "item": readable(item)}

    async def _put_capacity(self, region: str, left: float) -> float | None:
        known = Region(region)
        if known not in self.settings.regions:
            return None
        self.board.capacity(known).put(left, self.now())
        log.warning("capacity.reported", region=region, capacity=left)
        return self.board.view(known).capacity


class _DeadLetterDepth:
    """Reads the depth of a queue's own dead-letter queue; None while it has none."""

    def __init__(self, caller: Caller, queue_url: str) -> None:
        self._caller = caller
        self._queue_url = queue_url
        self._target: str | None = None

    async def __call__(self) -> Depth | None:
        self._target = self._target or await redrive_target(self._caller, self._queue_url)
        return await read_depth(self._caller, self._target) if self._target else None


async def _for_ever(loop: _Loop) -> None:
    await loop.run()
    raise RuntimeError(f"{type(loop).__name__} ended, which it never should")
