"""Three real dispatchers on an emulator, faults of every kind between them, and somebody who kills them at random.

One is never killed: of it is measured what a leak would show (the soak). The others die by SIGKILL and SIGTERM, in turn
and at random moments. In the end the weather clears, an operator redrives what SQS set aside, and accounts are settled.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from statistics import fmean
from typing import Any

from tests.scenarios.proxy import Call, Fault, How
from tests.scenarios.world import REGIONS, Dispatcher, World, request, until

RULES: dict[str, Any] = {
    "VISIBILITY_SECONDS": "20",
    "CLAIM_LEASE_SECONDS": "15",
    "POLL_WAIT_SECONDS": "2",
    "DEPTH_TTL_SECONDS": "8",
    "DRAIN_TIMEOUT_SECONDS": "15",
}
"""Short ones, so that what a dead dispatcher held is back while the run lasts; a send may still take 5 s."""
OPERATIONS = (
    "ReceiveMessage", "SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch", "GetQueueAttributes",
    "BatchExecuteStatement", "BatchGetItem", "UpdateItem", "PutItem",
)  # fmt: skip
THROTTLED = {"sqs": "RequestThrottled", "dynamodb": "ProvisionedThroughputExceededException"}
HOLDS_MOST = 10  # faults that stand at once
TWINS, POISON = 0.1, 0.02
SAMPLE_S = 2.0
WARM_S = 360.0
"""Until then memory grows to what the worst moments of the weather need, and then stands (docs/guarantees.md)."""
THIRD_MIN = 30  # samples: a minute
SETTLE_S = 180.0


@dataclass(slots=True)
class Sample:
    """Of the dispatcher that lives on. `rss` in bytes."""

    at: float
    rss: float
    fds: float
    tasks: float
    in_flight: float
    healthy: bool


@dataclass(slots=True)
class Summary:
    seed: int
    seconds: float = 0.0
    requests: int = 0
    messages: int = 0
    poison: int = 0
    calls: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    drains: int = 0
    redriven: int = 0
    lost: int = 0
    extra: int = 0
    unexplained: list[str] = field(default_factory=list)
    rejected: int = 0
    bad_exits: list[str] = field(default_factory=list)
    bugs: int = 0  # logged as such
    samples: list[Sample] = field(default_factory=list)
    rss_growth: float | None = None  # of the last third over the first, once warm; None: it was over before that
    idle: dict[str, float] = field(default_factory=dict)  # of the one that lives on, when all is done

    @property
    def faults_found(self) -> list[str]:
        """What is wrong; nothing when all is well."""
        unhealthy = sum(not sample.healthy for sample in self.samples)
        return [
            *([f"{self.lost} requests lost"] if self.lost else []),
            *([f"copies that no fault explains: {self.unexplained[:5]}"] if self.unexplained else []),
            *([f"{self.poison} poison messages, {self.rejected} rejected"] if self.rejected != self.poison else []),
            *self.bad_exits,
            *([f"{self.bugs} bugs in the logs"] if self.bugs else []),
            *([f"unhealthy in {unhealthy} of {len(self.samples)} samples"] if unhealthy else []),
            *([f"{self.idle['in_flight']:.0f} slots taken at the end"] if self.idle.get("in_flight") else []),
        ]

    def lines(self) -> list[str]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(self.faults).most_common())
        lines = [
            f"seed {self.seed}, {self.seconds:.0f} s: {self.requests} requests in {self.messages} messages, "
            f"{self.poison} of poison besides",
            f"faults injected: {sum(self.faults.values())} of {self.calls} calls ({kinds})",
            f"killed: {self.kills} by SIGKILL, {self.drains} by SIGTERM; {self.redriven} redriven by hand",
            f"lost: {self.lost}    extra: {self.extra}, {len(self.unexplained)} of them unexplained    "
            f"poison in the dead-letter queue: {self.rejected} of {self.poison}",
        ]
        if self.samples:
            first, last = self.samples[0], self.samples[-1]
            grew = "too short to tell a leak" if self.rss_growth is None else f"{self.rss_growth:+.1%} once warm"
            lines.append(
                f"the one that lived on: memory {first.rss / 1e6:.1f} → {last.rss / 1e6:.1f} MB "
                f"({grew}), files {first.fds:.0f} → {self.idle.get('fds', 0):.0f}, "
                f"tasks {first.tasks:.0f} → {self.idle.get('tasks', 0):.0f}, slots taken in the end "
                f"{self.idle.get('in_flight', 0):.0f}, healthy in {sum(s.healthy for s in self.samples)} of "
                f"{len(self.samples)} samples"
            )
        return lines


class Books:
    """What was sent under which excuse. Hears every call, when it comes and when it ended; keeps ids, not bodies."""

    def __init__(self) -> None:
        self.excused: Counter[str] = Counter()  # request ids: sends that may have been done without anyone's knowing
        self.unconfirmed: dict[str, set[str]] = {}  # by dispatcher
        self.faults: Counter[str] = Counter()
        self.calls = 0

    def hear(self, call: Call, ended: bool) -> None:
        if not ended:
            self.calls += 1
            if call.struck:
                self.faults[call.struck.how.name.lower()] += 1
        if call.operation == "SendMessageBatch" and not ended:
            ids = [json.loads(entry["MessageBody"]).get("request_id", "") for entry in json.loads(call.body)["Entries"]]
            self.unconfirmed.setdefault(call.caller, set()).update(ids)
            if call.struck:
                self.excused.update(ids)
        elif call.operation in ("BatchExecuteStatement", "UpdateItem"):
            ids = _confirmed(json.loads(call.body))
            if call.struck and not ended:  # no confirmation for as long as a lease: a twin may be sent
                self.excused.update(ids)
            elif ended and call.answer and not call.struck:
                self.unconfirmed.setdefault(call.caller, set()).difference_update(ids)

    def dies(self, caller: str) -> None:
        """What it had sent and not confirmed may go once more."""
        self.excused.update(self.unconfirmed.pop(caller, set()))


def _confirmed(asked: Mapping[str, Any]) -> list[str]:
    if "Statements" in asked:
        updates = [s for s in asked["Statements"] if s["Statement"].startswith("UPDATE")]
        return [statement["Parameters"][-2]["S"] for statement in updates]
    request_id = asked["Key"]["request_id"]["S"]
    return [request_id] if request_id.isprintable() else []


async def chaos(
    world: World,
    books: Books,
    *,
    seed: int,
    seconds: float,
    rate: float,
    kills: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Send `rate` messages a second for that long, through bad weather, and make up the books."""
    random = Random(seed)
    summary = Summary(seed)
    arrived: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    started = time.monotonic()
    names = (f"chaos{number}" for number in range(10**6))

    async def start() -> tuple[str, Dispatcher]:
        name = next(names)
        return name, await world.start(**RULES, AWS_ACCESS_KEY_ID=name)

    (witness_name, witness), *others = await asyncio.gather(start(), start(), start())
    live = list(others)
    workers = [asyncio.create_task(_work(world, region, arrived)) for region in REGIONS]

    async def traffic() -> None:
        ids: list[str] = []
        while time.monotonic() < ends:
            due = int((time.monotonic() - started) * rate) - summary.messages
            bodies = []
            for _ in range(max(0, due)):
                if ids and random.random() < TWINS:
                    bodies.append(request(random.choice(ids[-200:])))
                else:
                    ids.append(f"{seed}-{len(ids)}")
                    bodies.append(request(ids[-1], priority=random.choice(("high", "normal", "low"))))
            summary.messages += len(bodies)
            if random.random() < POISON * rate / 4:
                bodies.append(f'{{"request_id": "poison-{summary.poison}"}}')
                summary.poison += 1
            await world.send(bodies)
            await asyncio.sleep(0.25)
        summary.requests = len(ids)

    async def weather() -> None:
        standing: list[Fault] = []
        while time.monotonic() < ends:
            operation = random.choice(OPERATIONS)
            throttled = random.random() < 0.4
            service = "sqs" if operation in OPERATIONS[:5] else "dynamodb"
            fault = Fault(
                random.choice(list(How)),
                operation,
                region=random.choice(("", *REGIONS)),
                times=random.randint(1, 5),
                seconds=random.uniform(0.2, 4.0),
                status=400 if throttled else random.choice((500, 503)),
                code=THROTTLED[service] if throttled else "ServiceUnavailable",
            )
            if (fault.how is How.HALF and "Batch" not in operation) or operation == "BatchGetItem":
                continue
            standing.append(world.proxy.add(fault))
            while len(standing) > HOLDS_MOST:
                world.proxy.forget(standing.pop(0))
            await asyncio.sleep(random.uniform(0.1, 1.0))
        for fault in standing:
            world.proxy.forget(fault)

    async def deaths() -> None:
        while kills and time.monotonic() < ends - 5:
            await asyncio.sleep(random.uniform(1.0, 8.0))
            name, victim = live.pop(random.randrange(len(live)))
            if random.random() < 0.6:
                summary.kills += 1
                await victim.kill()
                books.dies(name)
            else:
                summary.drains += 1
                status = await victim.drain()
                if status != 0:
                    summary.bad_exits.append(f"{name} ended with status {status} after SIGTERM")
                books.dies(name)
            live.append(await start())
            passed, faults = time.monotonic() - started, sum(books.faults.values())
            deaths = f"{summary.kills} killed, {summary.drains} drained"
            say(f"{passed:5.0f} s  {summary.messages} messages, {faults} faults, {deaths}, {len(arrived)} arrived")

    async def soak() -> None:
        while time.monotonic() < ends:
            summary.samples.append(await _sample(witness, started))
            await asyncio.sleep(SAMPLE_S)

    await asyncio.gather(traffic(), weather(), deaths(), soak())
    say("the weather clears; what is left is carried, and what SQS set aside is redriven")
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        counts = await asyncio.to_thread(_redrive, world)
        summary.redriven += counts["redriven"]
        if await world.master() == (0, 0) and counts["redriven"] == counts["failed"] == 0:
            break
        await asyncio.sleep(1.0)
    await until(lambda: _idle(witness), "the one that lived on idle", within=60)
    sample = await _sample(witness, started)
    summary.idle = {"fds": sample.fds, "tasks": sample.tasks, "in_flight": sample.in_flight}
    for name, dispatcher in [(witness_name, witness), *live]:
        status = await dispatcher.drain()
        if status != 0:
            summary.bad_exits.append(f"{name} ended with status {status} in the end")
    await asyncio.sleep(1.0)
    for worker in workers:
        worker.cancel()
    for region in REGIONS:
        arrived.update(arrival.body for arrival in await world.take(region))
    summary.seconds = time.monotonic() - started
    summary.calls, summary.faults = books.calls, dict(books.faults)
    by_id = Counter[str]()
    for body, count in arrived.items():
        by_id[json.loads(body)["request_id"]] += count
    summary.lost = sum(f"{seed}-{number}" not in by_id for number in range(summary.requests))
    summary.extra = sum(count - 1 for count in by_id.values())
    summary.unexplained = [i for i, count in by_id.items() if count - 1 > books.excused[i]]
    summary.rejected = len({letter.body for letter in await world.dead_letters()})
    summary.bugs = sum(len(d.logged("message.failed")) + len(d.logged("process.failed")) for d in world.dispatchers)
    summary.rss_growth = _growth(summary.samples)
    return summary


async def _work(world: World, region: str, arrived: Counter[str]) -> None:
    """The workers of a Region: they take whatever comes."""
    while True:
        for arrival in await world.take(region):
            arrived[arrival.body] += 1
        await asyncio.sleep(0.3)


async def _sample(dispatcher: Dispatcher, started: float) -> Sample:
    metrics = await dispatcher.metrics()
    health, _ = await dispatcher.get("/healthz")
    process = {name: value for name, _, value in metrics.all if name.startswith("process_")}
    return Sample(
        at=time.monotonic() - started,
        rss=process["process_resident_memory_bytes"],
        fds=process["process_open_fds"],
        tasks=metrics.total("event_loop_tasks"),
        in_flight=metrics.total("inflight_messages"),
        healthy=health == 200,
    )


async def _idle(dispatcher: Dispatcher) -> bool:
    return (await dispatcher.metrics()).total("inflight_messages") == 0


def _redrive(world: World) -> dict[str, int]:
    """What an operator would type."""
    environment = {**os.environ, **world.cloud.environment, **world.resources.environment()}
    argv = [sys.executable, "-m", "dispatcher", "dlq", "redrive", "--json", "--rate", "1000"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise AssertionError(f"dlq redrive: {done.stderr}")
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


def _growth(samples: list[Sample]) -> float | None:
    """How much more memory the last third has than the first, of those that were taken after the warm-up."""
    warm = [sample for sample in samples if sample.at >= WARM_S]
    third = len(warm) // 3
    if third < THIRD_MIN:
        return None
    return fmean(s.rss for s in warm[-third:]) / fmean(s.rss for s in warm[:third]) - 1
