"""Whole dispatchers, as `app.py` composes them, on one fake AWS in virtual time; and what must hold of them.

Some of it is looked at the moment it happens (`violations`), the rest when all is quiet (`settle`, then `check`).
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from random import Random
from typing import Any

from dispatcher.app import App
from dispatcher.clock import Clock
from dispatcher.model import Outcome
from dispatcher.pipeline import LOST_ANSWERS_MAX
from dispatcher.settings import Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.tracing import Tracing
from tests.fakes.aws import FakeAws, Item, Queue
from tests.fakes.faults import LIFE, KilledError, Life
from tests.world.wire import Call, FakeClients, Spell, Wire

EPOCH_S = 1_750_000_000.0
HOME = "us-east-1"
REGIONS = ("us-east-1", "us-west-2", "eu-west-1")
TABLE = "ledger"
CLOCKS_S = 1.1
"""A dispatcher's corrected clock may be off by a second (the `Date` header has whole ones), and calls take a moment."""
SHORT: Mapping[str, Any] = {
    "visibility_seconds": 8,
    "claim_lease_seconds": 5,
    "poll_wait_seconds": 1,
    "depth_ttl_seconds": 16,
    "drain_timeout_seconds": 10,
    "pollers": 1,
    "max_in_flight": 50,
}
GENERATION = "dispatcher.generation"


@dataclass(slots=True, eq=False)
class Send:
    """One message that left for a regional queue, and how far that went. Loop time."""

    request_id: str
    region: str
    life: Life
    token: str  # of the claim that it was sent under
    generation: int
    left_at: float
    doubtful: bool  # the weather struck this call
    arrived_at: float | None = None
    heard_at: float | None = None


@dataclass(slots=True, eq=False)
class Receive:
    """One receive of a message of the master queue."""

    message_id: str
    receipt: str
    at: float
    life: Life
    heard: bool = False  # the dispatcher got it
    let_go: bool = False  # a call that made it visible early, or deleted it, left for AWS
    lapsed: bool = False  # an extension of it failed, or may have


@dataclass(slots=True, eq=False)
class Write:
    at: float
    key: str
    old: Item | None
    new: Item

    def text(self, name: str) -> str:
        return text(self.new, name)

    @property
    def over_expired(self) -> bool:
        """What stood there before had been forgotten."""
        return self.old is not None and float(text(self.old, "expires_at")) <= EPOCH_S + self.at + CLOCKS_S


def text(item: Item, name: str) -> str:
    return str(next(iter(item.get(name, {"S": ""}).values())))


class Process:
    """One dispatcher."""

    def __init__(self, world: "World", name: str, skew_s: float, settings: Settings) -> None:
        self.world = world
        self.life = Life(name)
        self.settings = settings
        self.clock = Clock(lambda: world.epoch() + skew_s)
        self.app: App | None = None
        self.drained_at: float | None = None
        self.ended = asyncio.Event()

    def start(self) -> "Process":
        context = copy_context()
        context.run(LIFE.set, self.life)
        self.task = asyncio.create_task(self._run(), name=self.life.name, context=context)
        return self

    @property
    def alive(self) -> bool:
        return not self.life.dead and not self.ended.is_set()

    def drain(self) -> None:
        self.drained_at = self.drained_at or self.world.aws.now()
        if self.app:
            self.app.lifecycle.drain()

    def kill(self) -> None:
        self.life.kill()

    async def _run(self) -> None:
        try:
            random, tracing = Random(f"{self.world.seed} {self.life.name}"), self.world.tracing
            self.app = App(self.settings, clock=self.clock, random=random, tracing=tracing)
            if self.drained_at is not None:
                self.app.lifecycle.drain()
            await self.app.work(
                FakeClients(self.world.wire, self.clock, self.app.metrics, tracing.call if tracing else None)
            )
            if self.drained_at is None:
                self.world.violations.append(f"{self.life.name} ended though nobody asked it to")
        except BaseException as ended:  # what killed it may come alone or among others
            early = type(ended).__name__ == "_StoppedEarly" and self.drained_at is not None
            if not self.life.dead and not early:
                self.world.violations.append(f"{self.life.name} ended: {ended!r}")
        finally:
            self.ended.set()

    def value(self, name: str, **labels: str) -> float:
        assert self.app
        return self.app.registry.get_sample_value(f"dispatcher_{name}", labels) or 0.0

    def outcomes(self) -> dict[str, int]:
        counts = {str(o): int(self.value("messages_total", outcome=o)) for o in Outcome}
        return {outcome: count for outcome, count in counts.items() if count}


@dataclass(slots=True, eq=False)
class Request:
    """What a client asked for: the same id may be sent several times."""

    request_id: str
    fields: Mapping[str, Any]
    message_ids: list[str] = field(default_factory=list)
    generation: int = 0  # the highest that was sent


class World:
    """`seed` makes everything that is random in it."""

    def __init__(self, seed: int, *, receives_max: int = 3, retention_s: float = 21 * 86400, **settings: Any) -> None:
        loop = asyncio.get_running_loop()
        self.seed = seed
        self.random = Random(seed)
        self.aws = FakeAws(loop.time, EPOCH_S)
        self.dead_letters = self.aws.queue(HOME, "master-dlq")
        self.master = self.aws.queue(HOME, "master", dead=self.dead_letters, receives_max=receives_max)
        self.regional = {region: self.aws.queue(region, "regional") for region in REGIONS}
        self.aws.tables[TABLE] = {}
        self.aws.wrote = self._wrote
        self.context = copy_context()
        self.wire = Wire(self.aws, self.random, self.context, self._leaves, self._done, self._heard, self._broken)
        self.retention_s = retention_s
        self.settings = {**SHORT, "ledger_retention_seconds": retention_s, **settings}
        self.tracing: Tracing | None = None  # of every process that is started from now on
        self.processes: list[Process] = []
        self.requests: dict[str, Request] = {}
        self.sends: list[Send] = []
        self.receives: dict[str, list[Receive]] = defaultdict(list)  # by message id
        self.writes: dict[str, list[Write]] = defaultdict(list)  # by request id
        self.ledger_trouble: list[tuple[float, Life]] = []  # calls that the weather struck
        self.violations: list[str] = []
        self.cut_off = False  # a drain's deadline may have come between a send and its confirmation
        self._workers: list[asyncio.Task[None]] = []
        loop.set_exception_handler(self._met)

    def epoch(self) -> float:
        return EPOCH_S + self.aws.now()

    def _broken(self, fault: BaseException) -> None:
        self.violations.append(f"the fake itself failed: {fault!r}")

    def _met(self, _: object, context: Mapping[str, Any]) -> None:
        if not isinstance(context.get("exception"), KilledError):
            self.violations.append(f"unhandled: {context.get('message')} {context.get('exception')!r}")

    # --- what happens in it ---------------------------------------------------------------------------------------

    def operators(self, **settings: Any) -> Settings:
        rules = self.settings.get("rules", {})
        regions = {region: {"queue_url": queue.url, **rules.get(region, {})} for region, queue in self.regional.items()}
        return Settings(
            home_region=HOME,
            master_queue_url=self.master.url,
            regions=regions,
            ledger_table=TABLE,
            **{k: v for k, v in {**self.settings, **settings}.items() if k != "rules"},
        )

    def start(self, *, skew_s: float = 0.0, **settings: Any) -> Process:
        process = Process(self, f"p{len(self.processes) + 1}", skew_s, self.operators(**settings))
        self.processes.append(process)
        return process.start()

    async def command[T](self, life: Life, work: Callable[[Settings, FakeClients], Awaitable[T]]) -> T | None:
        """Run what an operator's command does; None if it was killed."""

        async def run() -> T | None:
            clock = Clock(self.epoch)
            try:
                return await work(self.operators(), FakeClients(self.wire, clock, Metrics.unread()))
            except BaseException:
                if not life.dead:
                    raise
                return None

        context = copy_context()
        context.run(LIFE.set, life)
        return await asyncio.create_task(run(), context=context)

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    def weather(self, spell: Spell) -> Spell:
        self.wire.spells.append(spell)
        return spell

    def submit(self, request_id: str, *, generation: int = 0, **fields: object) -> str:
        """Send a valid request to the master queue."""
        body = {"request_id": request_id, "model_name": "m", "input_data_url": "s3://bucket/key", **fields}
        attributes = {GENERATION: {"DataType": "Number", "StringValue": str(generation)}} if generation else {}
        message_id = self.master.put(json.dumps(body), attributes)
        request = self.requests.setdefault(request_id, Request(request_id, fields))
        request.message_ids.append(message_id)
        request.generation = max(request.generation, generation)
        return message_id

    def submit_raw(self, body: str) -> str:
        """Send what may be anything."""
        return self.master.put(body)

    def redrive(self) -> int:
        """Send what SQS itself put on the dead-letter queue back to the master, as an operator would: new ids."""
        count = 0
        for message in list(self.dead_letters.messages.values()):
            if "dispatcher.rejected_because" in message.attributes:
                continue
            self.dead_letters.delete(message)
            new = self.master.put(message.body, message.attributes, message.system)
            for request in self.requests.values():
                if message.message_id in request.message_ids:
                    request.message_ids.append(new)
            count += 1
        return count

    @property
    def arrived(self) -> list[Send]:
        return [send for send in self.sends if send.arrived_at is not None]

    def spent(self, message_id: str) -> int:
        """Receives of a message so far."""
        return len(self.receives[message_id])

    def work(self, region: str, per_second: float) -> None:
        """From now on workers take messages there."""

        async def take() -> None:
            while True:
                await asyncio.sleep(1 / per_second)
                for message in self.regional[region].take(1):
                    self.regional[region].delete(message)

        self._workers.append(asyncio.create_task(take(), context=self.context.copy()))

    async def until(self, holds: Callable[[], object], within_s: float) -> bool:
        deadline = self.aws.now() + within_s
        while not holds():
            if self.aws.now() >= deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    async def settle(self, within_s: float = 600.0) -> None:
        """Fine weather, a dispatcher at work, dead letters sent back: until nothing is left to be done."""
        self.wire.clear()
        self.cut_off = any(process.drained_at is not None for process in self.processes)
        for process in self.alive:
            process.life.dies = lambda point, number: False
            if process.drained_at is not None:
                await process.ended.wait()
        if not self.alive:
            self.start()

        def quiet() -> bool:
            self.redrive()
            return not self.master.messages

        if not await self.until(quiet, within_s):
            left = [f"{m.message_id} received {m.receives} times" for m in self.master.messages.values()]
            self.violations.append(f"after {within_s:g} s of quiet still in the master queue: {left}")
        await self.until(lambda: not self.wire.late, 20.0)  # what was sent long ago and is still on its way arrives
        for process in self.alive:
            if process.app and (stuck := process.app.heartbeats.stuck()):
                self.violations.append(f"{process.life.name}: {stuck}")
            process.drain()
        for process in self.processes:
            if process.drained_at is not None and not process.life.dead:
                await process.ended.wait()

    async def end(self) -> None:
        for process in self.processes:
            process.kill()
        for task in self._workers:
            task.cancel()
        for flying in self.wire.flying:
            flying.cancel()
        own = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not own]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # --- what is written down -------------------------------------------------------------------------------------

    def _regional(self, call: Call) -> Queue | None:
        queue = self.aws.queues.get((call.region, str(call.parameters.get("QueueUrl"))))
        return queue if queue is not None and queue.name == "regional" else None

    def _leaves(self, call: Call) -> None:
        match call.operation:
            case "send_message_batch" if self._regional(call):
                call.notes = [self._departs(call, entry) for entry in call.parameters["Entries"]]
            case "update_item" | "put_item" | "batch_execute_statement" | "batch_get_item" if call.kind:
                self.ledger_trouble.append((call.left_at, call.life))
            case "change_message_visibility_batch" | "delete_message_batch":
                for entry in call.parameters["Entries"]:
                    receive = self._received(entry["ReceiptHandle"])
                    if receive is None:
                        continue
                    if entry.get("VisibilityTimeout", 0) < self.settings["visibility_seconds"]:
                        receive.let_go = True
                    elif call.doubtful or call.kind:
                        receive.lapsed = True

    def _received(self, receipt: str) -> Receive | None:
        return next((r for r in self.receives[receipt.rpartition("#")[0]] if r.receipt == receipt), None)

    def _departs(self, call: Call, entry: Mapping[str, Any]) -> Send:
        """Nothing starts without a claim that names this Region and outlasts the send."""
        request_id = json.loads(entry["MessageBody"])["request_id"]
        item = self.aws.tables[TABLE].get(request_id)
        token = ""
        generation = int(((entry.get("MessageAttributes") or {}).get(GENERATION) or {}).get("StringValue") or 0)
        of_item = int(item["generation"]["N"]) if item else 0
        if item and item["state"]["S"] == "claimed" and item.get("region") == {"S": call.region}:
            token, generation = item["owner"]["S"], of_item
            left_s = float(item["lease_end"]["N"]) - self.epoch()
            if left_s < min(10.0, self.settings["claim_lease_seconds"] / 3) - CLOCKS_S:
                self.violations.append(f"{request_id}: sent with {left_s:.3f} s of lease left")
        elif of_item <= generation:  # else it was asked for again on purpose, and this claim was taken away for that
            self.violations.append(f"{request_id}: sent to {call.region}, but the ledger says {item}")
        send = Send(request_id, call.region, call.life, token, generation, call.left_at, call.doubtful)
        self.sends.append(send)
        return send

    def _done(self, call: Call, answer: Mapping[str, Any]) -> None:
        if call.operation == "send_message_batch" and call.notes:
            sends = dict(zip((e["Id"] for e in call.parameters["Entries"]), call.notes, strict=True))
            for said in answer.get("Successful") or []:
                sends[said["Id"]].arrived_at = self.aws.now()
        if call.operation == "receive_message" and call.parameters["QueueUrl"] == self.master.url:
            made = [
                Receive(m["MessageId"], m["ReceiptHandle"], self.aws.now(), call.life)
                for m in answer.get("Messages") or []
            ]
            for receive in made:
                earlier = self.receives[receive.message_id]
                if earlier:
                    self._judge_again(earlier[-1], receive)
                earlier.append(receive)
            call.notes = made

    def _heard(self, call: Call) -> None:
        assert call.answer is not None
        if call.operation == "send_message_batch" and call.notes:
            sends = dict(zip((e["Id"] for e in call.parameters["Entries"]), call.notes, strict=True))
            failed = {said.get("Id") for said in call.answer.get("Failed") or []}
            for said in call.answer.get("Successful") or []:
                if said.get("Id") in sends and said.get("Id") not in failed:
                    sends[said["Id"]].heard_at = self.aws.now()
        for receive in call.notes if call.operation == "receive_message" else []:
            told = [m.get("ReceiptHandle") for m in call.answer.get("Messages") or [] if "Body" in m]
            receive.heard = receive.receipt in told

    def _judge_again(self, before: Receive, again: Receive) -> None:
        """A receive is spent only for a reason: a dispatcher that lives and heard of it keeps it, or lets it go."""
        process = next(p for p in self.processes if p.life is before.life)
        body = self.master.messages[again.message_id].body
        if any(request.generation and f'"{request.request_id}"' in body for request in self.requests.values()):
            return  # whoever loses its claim to one that is dispatched again on purpose leaves its message
        # whose claim is answered after its lease has lost it, and leaves its message to whoever has it now
        late = any(life is before.life and before.at <= at for at, life in self.ledger_trouble)
        excused = not process.alive or not before.heard or before.let_go or before.lapsed or late
        if not excused:
            self.violations.append(
                f"{again.message_id}: received at {before.at:.3f} by {before.life.name}, and again at {again.at:.3f} "
                f"by {again.life.name} for no reason"
            )

    def _wrote(self, key: str, old: Item | None, new: Item) -> None:
        if not key.isprintable():
            return
        write = Write(self.aws.now(), key, old, new)
        self.writes[key].append(write)
        state, owner = write.text("state"), write.text("owner")
        if state == "claimed" and (message := self.master.messages.get(write.text("source_message_id"))):
            lease_end = float(write.text("lease_end")) - EPOCH_S
            if lease_end > message.visible_at + CLOCKS_S and message.visible_at > self.aws.now():
                self.violations.append(f"{key}: a lease until {lease_end:.3f}, visible at {message.visible_at:.3f}")
        if old is None:
            if state != "claimed":
                self.violations.append(f"{key}: {state} without a claim")
            return
        was = text(old, "state")
        again = int(write.text("generation")) > int(text(old, "generation"))
        if text(old, "owner") != owner:
            over = float(text(old, "lease_end")) <= self.epoch() + CLOCKS_S
            free = was in ("released", "rejected") or (was == "claimed" and over)
            if not (free or write.over_expired or again):
                self.violations.append(f"{key}: {was} by {text(old, 'owner')[:6]}, taken by {owner[:6]}")
        elif was == "dispatched" and state != "dispatched":
            self.violations.append(f"{key}: dispatched, and then {state}")

    # --- what must hold in the end ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError with everything that does not hold. Call `settle` first."""
        for request in self.requests.values():
            self._check_request(request)
        for queue in (self.master, self.dead_letters):
            for message in queue.messages.values():
                if queue is self.master or "dispatcher.rejected_because" not in message.attributes:
                    self.violations.append(f"{message.message_id} is left in {queue.name}")
        for process in self.processes:
            if process.app and not process.life.dead:
                self._check_process(process)
        assert not self.violations, "\n".join([*self.violations[:20], "", self.story()])

    def _check_request(self, request: Request) -> None:
        """Every valid request is in some regional queue, its claim ended, and its copies have reasons."""
        key = request.request_id
        sends = [send for send in self.sends if send.request_id == key]
        if not any(send.arrived_at is not None for send in sends):
            self.violations.append(f"{key}: lost")
            return
        item = self.aws.tables[TABLE].get(key)
        if item is None or (item["state"]["S"] != "dispatched" and not self.cut_off):
            self.violations.append(f"{key}: its claim did not end: {item}")
        arrived = [send for send in sends if send.arrived_at is not None]
        if max(send.generation for send in arrived) < request.generation:
            self.violations.append(f"{key}: was not dispatched again, though that was asked for")
        for token in {send.token for send in sends if send.token}:
            unheard = [send for send in arrived if send.token == token and send.heard_at is None and send.doubtful]
            if len(unheard) > LOST_ANSWERS_MAX:
                self.violations.append(f"{key}: {len(unheard)} sends with lost answers under one claim")
            later = [send for send in sends if send.token == token and unheard and send.left_at > unheard[0].left_at]
            if {send.region for send in later} - {unheard[0].region if unheard else ""}:
                self.violations.append(f"{key}: another Region after a lost answer: {[_told(send) for send in sends]}")
        for earlier, again in self._pairs(arrived):
            if reason := self._unexcused(earlier, again):
                self.violations.append(f"{key}: {reason}: {_told(earlier)}; {_told(again)}")

    @staticmethod
    def _pairs(sends: list[Send]) -> Iterator[tuple[Send, Send]]:
        ordered = sorted(sends, key=lambda send: send.left_at)
        return ((a, b) for n, a in enumerate(ordered) for b in ordered[n + 1 :])

    def _unexcused(self, a: Send, b: Send) -> str:
        """Why `b` should not have been sent after `a`; nothing when it is one of the named windows."""
        if b.generation > a.generation:
            return ""  # asked for
        between = [write for write in self.writes[a.request_id] if a.left_at <= write.at <= b.left_at]
        confirmed_at = [
            write.at
            for write in between
            if write.text("state") == "dispatched" and int(write.text("generation")) == b.generation
        ]
        if confirmed_at:
            forgotten = any(write.over_expired and write.at > confirmed_at[0] for write in between)
            return "" if forgotten else "sent again after it was confirmed"
        if a.heard_at is None or a.heard_at > b.left_at:
            return ""  # its answer was lost, or is late
        if not next(process for process in self.processes if process.life is a.life).alive:
            return ""  # its dispatcher died, or ended at the drain's deadline, before it could say so
        kept_out = any(life is a.life and a.heard_at <= at <= b.left_at for at, life in self.ledger_trouble)
        if kept_out and b.token != a.token:
            return ""  # the ledger took no confirmation until the lease was over
        return "a second copy without a reason"

    def _check_process(self, process: Process) -> None:
        assert process.app
        name, app = process.life.name, process.app
        if process.drained_at is not None and sum(process.outcomes().values()) != process.value("received_total"):
            self.violations.append(f"{name}: received {process.value('received_total')}, ended {process.outcomes()}")
        if len(app.in_flight) or app.in_flight.asked:
            self.violations.append(f"{name}: {len(app.in_flight)} slots taken, {app.in_flight.asked} asked for")
        for region, view in app.board.views().items():
            if view.under_way:
                self.violations.append(f"{name}: {view.under_way} places still booked in {region}")
        if process.value("errors_total", stage="route", error="unexpected") or process.value(
            "errors_total", stage="extend", error="unexpected"
        ):
            self.violations.append(f"{name}: met a bug")

    def story(self) -> str:
        """What happened, in order."""
        lines = [(spell.begins, f"weather   {spell}") for spell in self.wire.spells]
        for key, writes in self.writes.items():
            for w in writes:
                until = f", until {float(w.text('lease_end')) - EPOCH_S:.3f}" if w.text("state") == "claimed" else ""
                what = f"{w.text('state')} by {w.text('owner')[:6]} for {w.text('region')}{until}"
                lines.append((w.at, f"ledger    {key} {what}"))
        lines += [(send.left_at, f"send      {_told(send)}") for send in self.sends]
        for receives in self.receives.values():
            for r in receives:
                more = [", who did not hear of it"] * (not r.heard) + [", let go"] * r.let_go + [", lapsed"] * r.lapsed
                lines.append((r.at, f"received  {r.message_id} by {r.life.name}{''.join(more)}"))
        for process in self.processes:
            if process.life.died_at is not None:
                lines.append((process.life.died_at, f"killed    {process.life.name}"))
            if process.drained_at is not None:
                lines.append((process.drained_at, f"SIGTERM   {process.life.name}"))
        return "\n".join(f"{at:9.3f} {text}" for at, text in sorted(lines))


@asynccontextmanager
async def story(seed: int = 1, **settings: Any) -> AsyncIterator[World]:
    """A world that settles and is checked when its story ends well."""
    here = World(seed, **settings)
    try:
        yield here
        await here.settle()
        here.check()
    finally:
        await here.end()


def _told(send: Send) -> str:
    arrived = "did not arrive" if send.arrived_at is None else f"arrived {send.arrived_at:.3f}"
    heard = "unheard" if send.heard_at is None else f"heard {send.heard_at:.3f}"
    return f"{send.request_id} to {send.region} by {send.life.name} at {send.left_at:.3f}, {arrived}, {heard}"
