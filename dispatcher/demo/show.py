"""The whole system on one machine: emulator, three Regions with GPU workers, the real daemon, a Spot interruption."""

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

import aiohttp
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from dispatcher.aws.clients import Clients
from dispatcher.aws.master import MasterQueue
from dispatcher.aws.provision import Resources, provision
from dispatcher.aws.regional import SendingQueue
from dispatcher.clock import Clock
from dispatcher.demo.cloud import Cloud, NoEmulatorError, embedded, free_port
from dispatcher.demo.gpus import GPUS_EACH, Gpus, NoTopicError, make_topic
from dispatcher.demo.traffic import Submission, traffic
from dispatcher.demo.worker import Callbacks, Job
from dispatcher.lifecycle import die_with_parent
from dispatcher.model import Outgoing, Region
from dispatcher.telemetry.metrics import Metrics

HOME = Region("us-east-1")
GPUS = {Region("us-east-1"): 24, Region("us-west-2"): 12, Region("eu-west-1"): 8}
LEFT_AFTER_INTERRUPTION = GPUS_EACH  # of the largest Region's GPUs, half-way
SERVICE_S = 0.3
PER_SECOND = 100.0  # requests arrive at this rate: less than all GPUs can do, more than are left after the interruption
MOTO_MESSAGES, MOTO_PER_SECOND = 200, 15.0  # moto's queues slow down with their depth
PATIENCE_S = 90.0  # without any progress: what has not arrived by then counts as lost

# The real defaults are made for minutes; a demo of half a minute shortens what would show only later.
SHORTER = {
    "DISPATCHER_DEPTH_TTL_SECONDS": "4",
    "DISPATCHER_POLL_WAIT_SECONDS": "2",
    "DISPATCHER_VISIBILITY_SECONDS": "15",
    "DISPATCHER_CLAIM_LEASE_SECONDS": "10",
    "DISPATCHER_OVERLOAD_THRESHOLD": "400",
    "DISPATCHER_LOG_FORMAT": "json",
}


@dataclass(slots=True)
class Tally:
    """What the outside saw, kept apart from what the dispatcher says of itself. Workers tell it from their threads."""

    sent_at: dict[str, float] = field(default_factory=dict)
    messages_sent: int = 0
    served: dict[str, float] = field(default_factory=dict)  # request id to seconds from submission to a worker
    served_in: Counter[Region] = field(default_factory=Counter)
    copies: dict[str, set[str]] = field(default_factory=dict)  # request id to the SQS messages that carried it
    rejected: dict[str, str] = field(default_factory=dict)  # SQS message id to the reason
    began: dict[str, float] = field(default_factory=dict)  # when a worker last started on a request
    results: dict[str, str] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)  # how often each request's client was told of its result
    last_progress: float = field(default_factory=time.monotonic)
    lock: Lock = field(default_factory=Lock)
    callbacks: Callbacks = field(default_factory=Callbacks)

    def find(self, job: Job) -> str | None:
        """A delivery reached a worker; one that returned from an interrupted worker is no second copy."""
        with self.lock:
            self.last_progress = time.monotonic()
            self.copies.setdefault(job.request_id, set()).add(job.message_id)
            self.began[job.request_id] = time.time()
            return self.results.get(job.request_id)

    def keep(self, job: Job, result: str) -> str:
        with self.lock:
            return self.results.setdefault(job.request_id, result)

    def tell(self, region: Region, topic: str, request_id: str, result: str) -> None:
        self.callbacks(topic, request_id, result)
        with self.lock:
            self.last_progress = time.monotonic()
            self.told[request_id] += 1
            if request_id not in self.served:
                self.served[request_id] = self.began[request_id] - self.sent_at[request_id]
                self.served_in[region] += 1

    @property
    def dispatched_twice(self) -> int:
        return sum(len(copies) > 1 for copies in self.copies.values())


async def demo(messages: int, seed: int, console: Console) -> dict[str, Any]:
    """Run it, showing progress on `console`; return the summary. `summary["ok"]`: every request is accounted for."""
    with tempfile.TemporaryDirectory() as folder, embedded() as cloud:
        rate = PER_SECOND
        if cloud.kind == "moto":
            rate = MOTO_PER_SECOND
            if messages > MOTO_MESSAGES:
                messages = MOTO_MESSAGES
                console.print(
                    f"MiniStack is not installed, so moto stands in; its queues are slow, so {messages} messages. "
                    "'make setup' installs MiniStack."
                )
        with _environment(cloud):
            try:
                topic = await asyncio.to_thread(make_topic, HOME)
            except NoTopicError as fault:
                raise NoEmulatorError(f"{cloud.kind}: {fault}") from fault
            return await _Stage(cloud, traffic(messages, seed, topic), rate, seed, console, Path(folder)).play()


class _Stage:
    def __init__(
        self, cloud: Cloud, submissions: Sequence[Submission], rate: float, seed: int, console: Console, folder: Path
    ) -> None:
        self.cloud = cloud
        self.submissions = submissions
        self.rate = rate
        self.random = Random(seed)
        self.console = console
        self.log_file = folder / "dispatcher.log"
        self.tally = Tally()
        self.valid = {s.request_id for s in submissions if s.request_id}
        self.port = free_port()
        self.page = f"http://127.0.0.1:{self.port}"
        self.status: dict[str, Any] = {}
        self.event = ""
        self.gpus: list[Gpus] = []

    async def play(self) -> dict[str, Any]:
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            clients = await stack.enter_async_context(Clients(Clock(), Metrics.unread()))
            resources = await self._provision(clients)
            http = await stack.enter_async_context(aiohttp.ClientSession())
            daemon = await self._start(resources)
            try:
                await self._ready(http, daemon)
                self.console.print(f"the page: {self.page} (it goes away at the end)")
                view = stack.enter_context(_View(self))
                async with asyncio.TaskGroup() as group:
                    await self._hire(resources, stack)
                    background = [group.create_task(self._watch(http, view))]
                    background.append(group.create_task(self._read_dead_letters(clients, resources, stack)))
                    await self._submit(clients, resources, stack)
                    await self._settled()
                    for task in background:
                        task.cancel()
                status = await _get(http, f"{self.page}/status")
                view.update()
            finally:
                exit_status = await self._stop(daemon)
        return self._summary(status, exit_status, time.monotonic() - began)

    async def _provision(self, clients: Clients) -> Resources:
        made: Resources | None = None
        async for step in provision(clients, name="demo", home=HOME, regions=list(GPUS)):
            if isinstance(step, Resources):
                made = step
        if made is None:
            raise AssertionError("provision ends with its resources")
        return made

    async def _start(self, resources: Resources) -> asyncio.subprocess.Process:
        environment = {
            **os.environ,
            **resources.environment(),
            **SHORTER,
            "DISPATCHER_HTTP_HOST": "127.0.0.1",
            "DISPATCHER_HTTP_PORT": str(self.port),
        }
        with self.log_file.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "dispatcher", "run"],
                env=environment,
                stdout=log,
                stderr=log,
                preexec_fn=partial(die_with_parent, signal.SIGKILL),  # what it would drain to goes too
            )

    async def _ready(self, http: aiohttp.ClientSession, daemon: asyncio.subprocess.Process) -> None:
        for _ in range(300):
            if daemon.returncode is not None:
                raise RuntimeError(f"the dispatcher ended at once:\n{self.log_file.read_text()[-2000:]}")
            answer = await _get(http, f"{self.page}/readyz")
            if answer.get("ok"):
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the dispatcher did not become ready:\n{self.log_file.read_text()[-2000:]}")

    async def _hire(self, resources: Resources, stack: AsyncExitStack) -> None:
        for region, count in GPUS.items():
            url, tell = resources.regional_queue_urls[region], partial(self.tally.tell, region)
            gpus = Gpus(region, url, SERVICE_S, self.random, self.tally, tell)
            self.gpus.append(await stack.enter_async_context(gpus))
            gpus.add(count)

    async def _submit(self, clients: Clients, resources: Resources, stack: AsyncExitStack) -> None:
        caller = await clients.open("sqs", HOME, pool=10, attempts=1)
        queue = await stack.enter_async_context(SendingQueue(resources.master_queue_url, caller))
        began = time.monotonic()
        half_way = len(self.submissions) // 2
        async with asyncio.TaskGroup() as sends:
            for number, submission in enumerate(self.submissions):
                if number == half_way:
                    self._interrupt()
                if submission.request_id:
                    self.tally.sent_at.setdefault(submission.request_id, time.time())
                sends.create_task(queue.send(Outgoing(submission.body, {}, None)))
                self.tally.messages_sent += 1
                await asyncio.sleep(max(0.0, began + (number + 1) / self.rate - time.monotonic()))

    def _interrupt(self) -> None:
        largest = max(self.gpus, key=len)
        gone = len(largest) - LEFT_AFTER_INTERRUPTION
        handed_back = largest.interrupt(LEFT_AFTER_INTERRUPTION)
        self.event = f"Spot took {gone} GPUs in {largest.region} back; {handed_back} requests return to its queue"
        if not self.console.is_terminal:
            self.console.print(self.event)

    async def _read_dead_letters(self, clients: Clients, resources: Resources, stack: AsyncExitStack) -> None:
        receiving = await clients.open("sqs", HOME, pool=2, attempts=1, read_timeout_s=15.0)
        caller = await clients.open("sqs", HOME, pool=10, attempts=3)
        letters = MasterQueue(resources.dead_letter_queue_url, receiving, caller, wait_s=1, visibility_s=60)
        queue = await stack.enter_async_context(letters)
        while True:
            for delivery in await queue.receive(10):
                reason = delivery.attributes.get("dispatcher.rejected_because")
                said = str(reason.value).partition(":")[0] if reason else "no reason"
                self.tally.rejected[delivery.message_id] = said
                self.tally.last_progress = time.monotonic()
                await queue.acknowledge(delivery)

    async def _watch(self, http: aiohttp.ClientSession, view: "_View") -> None:
        while True:
            self.status = await _get(http, f"{self.page}/status") or self.status
            view.update()
            await asyncio.sleep(0.25)

    async def _settled(self) -> None:
        """Return when everything is where it belongs, or when nothing has moved for long."""
        bad = len(self.submissions) - sum(1 for s in self.submissions if s.request_id)
        while time.monotonic() < self.tally.last_progress + PATIENCE_S:
            served = len(self.tally.served) == len(self.valid)
            rejected = len(self.tally.rejected) >= bad
            ended = self.status.get("totals", {})
            # a held delivery comes again; these three are the ends of a message
            settled = sum(ended.get(end, 0) for end in ("dispatched", "duplicate", "rejected")) >= len(self.submissions)
            waiting = any(region["depth"] for region in self.status.get("regions", {}).values())  # as was read last
            if served and rejected and settled and not waiting and self.status.get("in_flight") == 0:
                return
            await asyncio.sleep(0.2)

    async def _stop(self, daemon: asyncio.subprocess.Process) -> int:
        if daemon.returncode is None:
            daemon.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(30):
                return await daemon.wait()
        except TimeoutError:
            daemon.kill()
            return await daemon.wait()

    def _summary(self, status: dict[str, Any], exit_status: int, seconds: float) -> dict[str, Any]:
        tally = self.tally
        totals = status.get("totals", {})
        bad = sum(1 for s in self.submissions if not s.request_id)
        lost = sorted(self.valid - tally.served.keys())
        waits = sorted(tally.served.values())
        duplicates = len(self.submissions) - bad - len(self.valid)
        accounted = len(tally.rejected) == bad and totals.get("duplicate", 0) == duplicates
        ok = not lost and not tally.dispatched_twice and accounted and exit_status == 0
        return {
            "ok": ok,
            "emulator": self.cloud.kind,
            "messages": len(self.submissions),
            "requests": len(self.valid),
            "served": len(tally.served),
            "told": len(tally.told),
            "told_again": tally.told.total() - len(tally.told),
            "dispatched": {region: tally.served_in[region] for region in GPUS},
            "duplicates_dropped": totals.get("duplicate", 0),
            "duplicates_sent": duplicates,
            "rejected": dict(Counter(tally.rejected.values())),
            "rejected_sent": bad,
            "lost": len(lost),
            "dispatched_twice": tally.dispatched_twice,
            "seconds_to_worker": {
                "p50": round(statistics.median(waits), 2) if waits else None,
                "p99": round(waits[int(len(waits) * 0.99)], 2) if waits else None,
            },
            "dispatcher": totals,
            "dispatcher_exit_status": exit_status,
            "seconds": round(seconds, 1),
        }


class _View:
    """The live view: progress, and a row per Region; on anything but a terminal, a line now and then."""

    def __init__(self, stage: _Stage) -> None:
        self.stage = stage
        self.progress = Progress(
            TextColumn("{task.description:>10}"), BarColumn(bar_width=48), MofNCompleteColumn(), TimeElapsedColumn()
        )
        total = len(stage.submissions)
        self.tasks: dict[str, TaskID] = {
            "sent": self.progress.add_task("sent", total=total),
            "ended": self.progress.add_task("ended", total=total),
            "served": self.progress.add_task("served", total=len(stage.valid)),
        }
        self.live = Live(console=stage.console, refresh_per_second=4, transient=False)
        self.last_line = 0.0

    def __enter__(self) -> "_View":
        if self.stage.console.is_terminal:
            self.live.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        if self.stage.console.is_terminal:
            self.live.__exit__(*reason)

    def update(self) -> None:
        stage = self.stage
        totals = stage.status.get("totals", {})
        ended = sum(n for name, n in totals.items() if name != "received")
        self.progress.update(self.tasks["sent"], completed=stage.tally.messages_sent)
        self.progress.update(self.tasks["ended"], completed=ended)
        self.progress.update(self.tasks["served"], completed=len(stage.tally.served))
        if stage.console.is_terminal:
            self.live.update(Group(self.progress, self._regions(), stage.event))
        elif time.monotonic() > self.last_line + 5:
            self.last_line = time.monotonic()
            depths = ", ".join(f"{r} {v['depth']}" for r, v in stage.status.get("regions", {}).items())
            stage.console.print(
                f"sent {stage.tally.messages_sent}, ended {ended}, served {len(stage.tally.served)}; depth: {depths}"
            )

    def _regions(self) -> Table:
        table = Table("Region", "GPUs", "depth", "wait", "share", "health", "served", box=None, padding=(0, 1))
        for gpus in self.stage.gpus:
            region = self.stage.status.get("regions", {}).get(gpus.region, {})
            share = float(region.get("share") or 0.0)
            table.add_row(
                gpus.region,
                str(len(gpus)),
                str(region.get("depth", "")),
                f"{region.get('projected_wait_seconds') or 0:.1f} s",
                f"{'█' * round(share * 20):<20} {share:4.0%}",
                str(region.get("health", "")),
                str(self.stage.tally.served_in[gpus.region]),
            )
        return table


def report(summary: dict[str, Any]) -> Panel:
    """The summary for people."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold")
    table.add_column()
    sent = "message sent" if summary["messages"] == 1 else "messages sent"
    table.add_row(str(summary["messages"]), f"{sent}, {summary['requests']} different requests among them")
    for region, count in summary["dispatched"].items():
        table.add_row(str(count), f"dispatched to {region} and served there")
    table.add_row(str(summary["duplicates_dropped"]), f"duplicates dropped (of {summary['duplicates_sent']} sent)")
    rejected = sum(summary["rejected"].values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(summary["rejected"].items()))
    table.add_row(str(rejected), f"rejected (of {summary['rejected_sent']} bad ones sent): {reasons}")
    table.add_row(str(summary["dispatched_twice"]), "requests dispatched twice")
    table.add_row(str(summary["lost"]), "requests lost")
    again = f"; {summary['told_again']} of them again" if summary["told_again"] else ""
    table.add_row(str(summary["told"]), f"clients told of their result, by SNS{again}")
    waits = summary["seconds_to_worker"]
    table.add_row(f"{waits['p50']} s", f"from submission to a worker, median; 99 % within {waits['p99']} s")
    table.add_row(f"{summary['seconds']} s", f"altogether, on {summary['emulator']}")
    verdict = "every request accounted for" if summary["ok"] else "NOT every request accounted for"
    return Panel(table, title=verdict, border_style="green" if summary["ok"] else "red", expand=False)


@contextmanager
def _environment(cloud: Cloud) -> Any:
    """The SDK reads its endpoint and credentials from the environment, ours and our child's alike."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("AWS_", "DISPATCHER_")):
            del os.environ[name]
    os.environ.update(cloud.environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def _get(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    try:
        async with http.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
            got: dict[str, Any] = await answer.json()
            return got
    except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError):
        return {}
