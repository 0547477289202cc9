"""What a scenario plays in: queues and a table of its own on the emulator, the proxy, and dispatcher processes."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aioboto3
import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.aws.clients import Clients
from dispatcher.aws.provision import Resources, provision
from dispatcher.clock import Clock
from dispatcher.demo.cloud import Cloud, free_port
from dispatcher.model import Region
from dispatcher.telemetry.metrics import Metrics
from tests.scenarios.proxy import HOST, Call, Proxy
from tests.scenarios.zygote import Forked, zygote

REGIONS = ("us-east-1", "us-west-2", "eu-west-1")
HOME = "us-east-1"
PATIENCE_S = 60.0
SHORT = {
    "DISPATCHER_VISIBILITY_SECONDS": "8",
    "DISPATCHER_CLAIM_LEASE_SECONDS": "5",
    "DISPATCHER_POLL_WAIT_SECONDS": "1",
    "DISPATCHER_DEPTH_TTL_SECONDS": "4",
    "DISPATCHER_DRAIN_TIMEOUT_SECONDS": "20",
}
"""A dead dispatcher's messages are back after 8 s, a drain of an idle one takes 1 s."""


CLIENTS = ("lean", "sdk")
"""Of a scenario's dispatchers by turns; `TEST_AWS_CLIENT` chooses one for all of them."""


async def until(
    condition: Callable[[], Awaitable[object] | object], what: str, *, within: float = PATIENCE_S, every: float = 0.1
) -> None:
    """Wait until `condition` holds; fail with the last thing it said."""
    deadline = time.monotonic() + within
    while True:
        said = condition()
        if isinstance(said, Awaitable):
            said = await said
        if said:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"after {within:g} s still not: {what}")
        await asyncio.sleep(every)


def request(request_id: str, **more: object) -> str:
    """One valid body."""
    fields = {"request_id": request_id, "model_name": "gpt-l-7b", "input_data_url": f"s3://inputs/{request_id}"}
    return json.dumps(fields | more)


def requests(count: int, prefix: str = "r") -> list[str]:
    return [request(f"{prefix}-{n:04d}") for n in range(count)]


def ids_sent(body: bytes) -> set[str]:
    """The request ids in the body of a SendMessageBatch."""
    return {json.loads(entry["MessageBody"])["request_id"] for entry in json.loads(body)["Entries"]}


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message found in a queue."""

    region: str
    body: str
    attributes: Mapping[str, tuple[str, str | bytes]]
    receives: int

    @property
    def request_id(self) -> str:
        return str(json.loads(self.body)["request_id"])

    def text(self, name: str) -> str:
        return str(self.attributes[name][1])


@dataclass(slots=True, eq=False)
class Dispatcher:
    """One `dispatcher run` process."""

    process: "Forked | subprocess.Popen[bytes]"
    port: int
    log: Path
    session: aiohttp.ClientSession

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(f"http://{HOST}:{self.port}{path}") as answer:
            return answer.status, await answer.text()

    async def ready(self) -> None:
        async def is_ready() -> bool:
            assert self.running, f"it ended with status {self.process.returncode}"
            try:
                return (await self.get("/readyz"))[0] == 200
            except aiohttp.ClientError:
                return False

        await until(is_ready, "dispatcher ready", every=0.05)

    async def metrics(self) -> "Samples":
        _, text = await self.get("/metrics")
        return Samples(
            [(s.name, dict(s.labels), s.value) for f in text_string_to_metric_families(text) for s in f.samples]
        )

    async def status(self) -> dict[str, Any]:
        _, text = await self.get("/status")
        said: dict[str, Any] = json.loads(text)
        return said

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_status(self, within: float = PATIENCE_S) -> int:
        await until(lambda: not self.running, "process ended", within=within, every=0.05)
        return self.process.wait()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.exit_status()

    async def drain(self, within: float = PATIENCE_S) -> int:
        self.signal(signal.SIGTERM)
        return await self.exit_status(within)

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = (line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("{"))
        return [entry for entry in map(json.loads, lines) if entry.get("event") == event]


@dataclass(frozen=True, slots=True)
class Samples:
    all: Sequence[tuple[str, dict[str, str], float]]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of `dispatcher_<name>` with these labels."""
        return sum(v for n, has, v in self.all if n == f"dispatcher_{name}" and labels.items() <= has.items())


async def provisioned() -> Resources:
    """Create queues and a table with names of their own, on the emulator that the environment points at."""
    async with Clients(Clock(), Metrics.unread()) as clients:
        regions = [Region(region) for region in REGIONS]
        made = [
            step async for step in provision(clients, name=f"t{uuid4().hex[:12]}", home=Region(HOME), regions=regions)
        ]
    resources = made[-1]
    assert isinstance(resources, Resources)
    return resources


@asynccontextmanager
async def world_of(
    cloud: Cloud, resources: Resources, folder: Path, hears: Callable[[Call, bool], None] | None = None
) -> AsyncIterator["World"]:
    """A world that ends its dispatchers; `folder` is for their logs, `hears` for the proxy."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(cloud.endpoint, hears))
        world = World(cloud, resources, proxy, folder, stack)
        await world.open()
        try:
            yield world
        finally:
            world.end()


@dataclass(slots=True, eq=False)
class World:
    cloud: Cloud
    resources: Resources
    proxy: Proxy
    folder: Path
    stack: AsyncExitStack
    sqs: dict[str, Any] = field(default_factory=dict)  # clients by Region, straight to the emulator
    session: aiohttp.ClientSession = field(init=False)
    dispatchers: list[Dispatcher] = field(default_factory=list)
    quiet: bool = False

    async def open(self) -> None:
        self.session = await self.stack.enter_async_context(aiohttp.ClientSession())
        aws = aioboto3.Session(aws_access_key_id="emulator", aws_secret_access_key="emulator")
        for region in REGIONS:
            client = aws.client("sqs", region_name=region, endpoint_url=self.cloud.endpoint)
            self.sqs[region] = await self.stack.enter_async_context(client)

    # --- dispatchers --------------------------------------------------------------------------------------------

    async def start(self, *, ready: bool = True, **settings: str) -> Dispatcher:
        """Start a dispatcher behind the proxy; `settings` without their prefix."""
        port = int(settings.get("HTTP_PORT", 0)) or free_port()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DISPATCHER_"))},
            **self.cloud.environment,
            **self.resources.environment(),
            **SHORT,
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
            "DISPATCHER_HTTP_HOST": HOST,
            "DISPATCHER_HTTP_PORT": str(port),
            "DISPATCHER_LOG_FORMAT": "json",
            "DISPATCHER_AWS_CLIENT": os.environ.get("TEST_AWS_CLIENT") or CLIENTS[len(self.dispatchers) % 2],
            **{name if name.startswith("AWS_") else f"DISPATCHER_{name}": v for name, v in settings.items()},
        }
        log = self.folder / f"dispatcher-{len(self.dispatchers)}.log"
        process = zygote().start(environment, log)
        dispatcher = Dispatcher(process, port, log, self.session)
        self.dispatchers.append(dispatcher)
        if ready:
            await dispatcher.ready()
        return dispatcher

    def end(self) -> None:
        for number, dispatcher in enumerate(self.dispatchers):
            if dispatcher.running:
                dispatcher.signal(signal.SIGCONT)
                dispatcher.signal(signal.SIGKILL)
            dispatcher.process.wait()
            if self.quiet:
                continue
            lines = dispatcher.log.read_text(errors="replace").splitlines()
            print(f"--- dispatcher {number}: status {dispatcher.process.returncode}, last of {len(lines)} lines")
            print("\n".join(line[:400] for line in lines[-30:]))

    # --- queues -------------------------------------------------------------------------------------------------

    async def send(self, bodies: Iterable[str], attributes: Mapping[str, Any] | None = None) -> None:
        """Send to the master, ten a call."""
        entries = [
            {"Id": str(n), "MessageBody": body, "MessageAttributes": dict(attributes or {})}
            for n, body in enumerate(bodies)
        ]
        size = 10 if sum(len(e["MessageBody"]) for e in entries[:10]) < 200_000 else 1
        for at in range(0, len(entries), size):
            answer = await self.sqs[HOME].send_message_batch(
                QueueUrl=self.resources.master_queue_url, Entries=entries[at : at + size]
            )
            assert not answer.get("Failed"), answer

    async def counts(self, region: str, url: str) -> tuple[int, int]:
        """Visible and in flight, as the queue itself says."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await self.sqs[region].get_queue_attributes(QueueUrl=url, AttributeNames=names)
        visible, in_flight = (int(answer["Attributes"][name]) for name in names)
        return visible, in_flight

    async def allow_receives(self, count: int) -> None:
        """How often a message of the master queue may be received before SQS moves it."""
        sqs, url = self.sqs[HOME], self.resources.master_queue_url
        policy = (await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"]))["Attributes"]
        redrive = json.dumps({**json.loads(policy["RedrivePolicy"]), "maxReceiveCount": str(count)})
        await sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": redrive})

    async def master(self) -> tuple[int, int]:
        return await self.counts(HOME, self.resources.master_queue_url)

    async def depth(self, region: str) -> int:
        return (await self.counts(region, self.regional(region)))[0]

    async def forwarded(self) -> int:
        """Messages that wait in the regional queues."""
        return sum([await self.depth(region) for region in REGIONS])

    def regional(self, region: str) -> str:
        return {str(r): url for r, url in self.resources.regional_queue_urls.items()}[region]

    def regions(self, *, models: Mapping[str, list[str]] = {}, thresholds: Mapping[str, int] = {}) -> str:
        """The value of DISPATCHER_REGIONS, with more said of some Regions."""
        rules: dict[str, dict[str, object]] = {region: {"queue_url": self.regional(region)} for region in REGIONS}
        for region in models:
            rules[region]["models"] = models[region]
        for region in thresholds:
            rules[region]["overload_threshold"] = thresholds[region]
        return json.dumps(rules)

    async def until_master_is_empty(self, within: float = PATIENCE_S) -> None:
        async def empty() -> bool:
            return await self.master() == (0, 0)

        try:
            await until(empty, "master queue empty", within=within)
        except AssertionError as late:
            raise AssertionError(f"{late}; it has {await self.master()}") from None

    async def take(self, region: str) -> list[Arrival]:
        """Take everything that is visible out of a Region's queue."""
        return await self._take(region, self.regional(region))

    async def arrivals(self) -> list[Arrival]:
        """Take everything out of all regional queues."""
        return [arrival for region in REGIONS for arrival in await self.take(region)]

    async def dead_letters(self) -> list[Arrival]:
        return await self._take(HOME, self.resources.dead_letter_queue_url)

    async def left_in_master(self) -> list[Arrival]:
        return await self._take(HOME, self.resources.master_queue_url)

    async def _take(self, region: str, url: str) -> list[Arrival]:
        taken: list[Arrival] = []
        while True:
            answer = await self.sqs[region].receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=0,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            messages = answer.get("Messages") or []
            if not messages:
                return taken
            for message in messages:
                attributes = {
                    name: (value["DataType"], value["BinaryValue"] if "BinaryValue" in value else value["StringValue"])
                    for name, value in (message.get("MessageAttributes") or {}).items()
                }
                receives = int(message["Attributes"]["ApproximateReceiveCount"])
                taken.append(Arrival(region, message["Body"], attributes, receives))
            entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(messages)]
            await self.sqs[region].delete_message_batch(QueueUrl=url, Entries=entries)

    async def item(self, request_id: str) -> dict[str, str]:
        """What the ledger holds of a request."""
        aws = aioboto3.Session(aws_access_key_id="emulator", aws_secret_access_key="emulator")
        async with aws.client("dynamodb", region_name=HOME, endpoint_url=self.cloud.endpoint) as table:
            answer = await table.get_item(
                TableName=self.resources.ledger_table, Key={"request_id": {"S": request_id}}, ConsistentRead=True
            )
        return {name: str(next(iter(value.values()))) for name, value in answer["Item"].items()}

    # --- verdicts -----------------------------------------------------------------------------------------------

    async def assert_each_once(
        self, bodies: Sequence[str], *, extra: Iterable[str] = (), anywhere: bool = False
    ) -> list[Arrival]:
        """Every body is in exactly one regional queue, once, and no message became a dead letter.

        `extra`: request ids that may be there more often, in the same Region unless `anywhere`.
        """
        arrivals = await self.arrivals()
        sent, came = Counter(set(bodies)), Counter(arrival.body for arrival in arrivals)
        lost = sent - came
        again = came - sent
        dead = await self.dead_letters()
        assert not dead, f"dead letters: {[(d.body[:80], d.attributes) for d in dead[:5]]} of {len(dead)}"
        assert not lost, f"{len(lost)} of {len(sent)} lost: {sorted(lost)[:5]}"
        allowed = set(extra)
        unwanted = {body for body in again if json.loads(body)["request_id"] not in allowed}
        assert not unwanted, f"{len(unwanted)} of {len(sent)} more than once: {sorted(unwanted)[:5]}"
        for body in again:
            regions = {arrival.region for arrival in arrivals if arrival.body == body}
            assert len(regions) == 1 or anywhere, f"the copies of {body[:80]} are in {regions}"
        return arrivals

    async def assert_accounted_for(self, dispatcher: Dispatcher) -> Samples:
        """Each received message ended in exactly one outcome, once nothing is in flight."""

        async def settled() -> bool:
            return int((await dispatcher.metrics()).total("inflight_messages")) == 0

        await until(settled, "nothing in flight")
        metrics = await dispatcher.metrics()
        assert metrics.total("received_total") == metrics.total("messages_total")
        return metrics
