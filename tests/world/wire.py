"""What lies between a dispatcher and AWS, and what the weather does to it. Real callers, fake far side.

A request that has left travels on by itself: neither a cancelled caller nor a killed process takes it back.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import Context
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import StrEnum
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    ReadTimeoutError,
)

from dispatcher.aws.clients import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Around, Caller, Clients
from dispatcher.clock import Clock
from dispatcher.model import Region
from dispatcher.telemetry.metrics import Metrics
from tests.fakes.aws import FakeAws, refusal
from tests.fakes.faults import LIFE, Life

LATENCY_S = 0.004
ENDPOINT = "http://fake"


class Kind(StrEnum):
    """What can become of a call."""

    REFUSED = "refused"  # a definite no; nothing done
    FAILED = "failed"  # 5xx: done or not, nobody knows
    UNREACHABLE = "unreachable"  # no connection; nothing done
    RESET = "reset"  # the connection breaks: done or not
    HANG = "hang"  # no answer ever: done or not
    LATE = "late"  # on its way for seconds, and done then, whoever waits for it
    SLOW = "slow"  # done at once, answered late
    HALF = "half"  # some entries done, the others refused or failed
    MANGLED = "mangled"  # done; the answer lacks things, or has things that nobody asked for


@dataclass(slots=True, eq=False)
class Spell:
    """Bad weather for calls of one operation and Region (empty: any) between two moments of loop time."""

    kind: Kind
    begins: float
    ends: float
    operation: str = ""
    region: str = ""
    most: int = 1_000_000  # calls that it strikes
    chance: float = 1.0
    struck: int = 0

    def __str__(self) -> str:
        return (
            f"{self.begins:.2f}–{self.ends:.2f} s: {self.kind} {self.operation or 'any call'} in "
            f"{self.region or 'any Region'}, chance {self.chance:.2f}, {self.struck} of at most {self.most} struck"
        )


@dataclass(slots=True, eq=False)
class Call:
    """One request on its way. `answer` is what the caller was told; None: nothing."""

    operation: str
    region: str
    parameters: Mapping[str, Any]
    life: Life
    left_at: float
    kind: Kind | None = None
    answer: Mapping[str, Any] | None = None
    notes: list[Any] = field(default_factory=list)  # what the world writes down of it

    @property
    def doubtful(self) -> bool:
        """The caller may not learn what became of it."""
        return self.kind not in (None, Kind.REFUSED, Kind.UNREACHABLE)


REFUSALS = {
    "dynamodb": [("ProvisionedThroughputExceededException", 400), ("ThrottlingException", 400),
                 ("AccessDeniedException", 400), ("ExpiredTokenException", 400), ("RequestLimitExceeded", 400)],
    "sqs": [("RequestThrottled", 400), ("ThrottlingException", 400), ("AccessDenied", 403), ("ExpiredToken", 403),
            ("OverLimit", 403), ("KmsAccessDenied", 400)],
}  # fmt: skip
RETRIED_CODES = {
    "RequestThrottled",
    "ThrottlingException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
}
ENTRY_CODES = {
    "sqs": ["InternalError", "ThrottlingException", "AccessDenied", "SomethingNew"],
    "dynamodb": ["InternalServerError", "ThrottlingError", "ProvisionedThroughputExceeded", "SomethingNew"],
}


@dataclass(slots=True)
class Wire:
    """`leaves` hears of every call that leaves, `done` of every one that AWS did, `heard` of every one whose answer
    reached its process, `broken` of every fault of the fake itself, which callers would take for the network's.
    """

    aws: FakeAws
    random: Random
    context: Context
    leaves: Callable[[Call], None]
    done: Callable[[Call, Mapping[str, Any]], None]
    heard: Callable[[Call], None]
    broken: Callable[[BaseException], None]
    spells: list[Spell] = field(default_factory=list)
    flying: set[asyncio.Task[Mapping[str, Any]]] = field(default_factory=set)
    calls: int = 0
    struck: int = 0
    late: int = 0  # requests that are on their way for seconds

    def clear(self) -> None:
        """From now on the weather is fine; what is under way suffers to its end."""
        self.spells.clear()

    async def ask(self, region: str, service: str, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """One attempt of one call. Raises what the SDK would."""
        life = LIFE.get() or Life("nobody")
        life.passes(f"{operation}:asked")
        call = Call(operation, region, parameters, life, self.aws.now())
        call.kind = self._kind(call)
        self.calls += 1
        self.struck += call.kind is not None
        self.leaves(call)
        travel = asyncio.get_running_loop().create_task(self._travel(call, service), context=self.context.copy())
        self.flying.add(travel)
        travel.add_done_callback(self._landed)
        answer = await asyncio.shield(travel)
        life.passes(f"{operation}:answered")
        call.answer = answer
        self.heard(call)
        return answer

    def _landed(self, travel: asyncio.Task[Mapping[str, Any]]) -> None:
        self.flying.discard(travel)
        fault = None if travel.cancelled() else travel.exception()
        if fault is not None and not isinstance(fault, BotoCoreError | ClientError):
            self.broken(fault)

    def _kind(self, call: Call) -> Kind | None:
        for spell in self.spells:
            fits = (
                spell.begins <= call.left_at < spell.ends
                and spell.struck < spell.most
                and spell.operation in ("", call.operation)
                and spell.region in ("", call.region)
                and self.random.random() < spell.chance
            )
            if fits:
                spell.struck += 1
                return spell.kind
        return None

    async def _travel(self, call: Call, service: str) -> Mapping[str, Any]:
        random = self.random
        await asyncio.sleep(LATENCY_S)
        answer: Mapping[str, Any]
        match call.kind:
            case Kind.REFUSED:
                code, status = random.choice(REFUSALS[service])
                raise refusal(code, call.operation, status)
            case Kind.UNREACHABLE:
                raise ConnectTimeoutError(endpoint_url=ENDPOINT)
            case Kind.FAILED | Kind.RESET | Kind.HANG:
                if random.random() < 0.5:
                    await self._do(call)
                if call.kind is Kind.HANG:
                    await asyncio.sleep(3600)
                    raise ReadTimeoutError(endpoint_url=ENDPOINT)
                if call.kind is Kind.RESET:
                    raise ConnectionClosedError(endpoint_url=ENDPOINT)
                raise refusal(random.choice(["InternalFailure", "ServiceUnavailable"]), call.operation, 503)
            case Kind.LATE:
                self.late += 1
                await asyncio.sleep(random.uniform(0.5, 15.0))
                self.late -= 1
                return await self._do(call)
            case Kind.HALF if "Entries" in call.parameters or "Statements" in call.parameters:
                answer = self._half(call, service)
            case Kind.MANGLED:
                answer = mangled(await self._do(call), random)
            case _:
                answer = await self._do(call)
        await asyncio.sleep(random.uniform(0.5, 8.0) if call.kind is Kind.SLOW else LATENCY_S)
        return answer

    async def _do(self, call: Call) -> Mapping[str, Any]:
        answer = self.aws.do(call.region, call.operation, call.parameters)
        if call.operation == "receive_message" and not answer:
            answer = await self._poll(call)
        self.done(call, answer)
        return {**answer, "ResponseMetadata": {"HTTPHeaders": {"date": self.date()}, "HTTPStatusCode": 200}}

    def date(self) -> str:
        return formatdate(int(self.aws.epoch_s + self.aws.now()), usegmt=True)

    async def _poll(self, call: Call) -> dict[str, Any]:
        """The rest of a long poll."""
        queue = self.aws.at(call.region, call.parameters)
        deadline = self.aws.now() + call.parameters.get("WaitTimeSeconds", 0)
        while True:
            queue.arrived.clear()
            wakes = [at for at in (deadline, queue.next_visible_at()) if at is not None]
            try:
                async with asyncio.timeout_at(min(wakes)):
                    await queue.arrived.wait()
            except TimeoutError:
                pass
            answer = self.aws.do(call.region, call.operation, call.parameters)
            if answer or self.aws.now() >= deadline:
                return answer

    def _half(self, call: Call, service: str) -> dict[str, Any]:
        """Some entries are done, the others are not, or are and the answer says that they failed."""
        name = "Entries" if "Entries" in call.parameters else "Statements"
        entries = call.parameters[name]
        failing = [self.random.random() < 0.5 for _ in entries]
        codes = [self.random.choice(ENTRY_CODES[service]) for _ in entries]
        internal = ("InternalError", "InternalServerError")
        working = [not f or (c in internal and self.random.random() < 0.5) for f, c in zip(failing, codes, strict=True)]
        done = [entry for entry, works in zip(entries, working, strict=True) if works]
        answer: dict[str, Any] = {}
        if done:
            part = dict(call.parameters) | {name: done}
            answer = self.aws.do(call.region, call.operation, part)
            self.done(call, answer)
        if name == "Statements":
            said = iter(answer.get("Responses", []))
            responses = [next(said) if works else {} for works in working]
            for n, (fails, code) in enumerate(zip(failing, codes, strict=True)):
                if fails:
                    responses[n] = {"Error": {"Code": code, "Message": "by the weather"}}
            return {"Responses": responses}
        failed = {e["Id"]: c for e, f, c in zip(entries, failing, codes, strict=True) if f}
        return {
            "Successful": [e for e in answer.get("Successful", []) if e["Id"] not in failed],
            "Failed": [e for e in answer.get("Failed", []) if e["Id"] not in failed]
            + [{"Id": i, "Code": code, "SenderFault": False} for i, code in failed.items()],
        }


def mangled(answer: Mapping[str, Any], random: Random) -> dict[str, Any]:
    """Return the answer with something missing, null, or never asked for, as far as the SDK would let it through."""
    said = dict(answer)
    names = [name for name in said if name != "ResponseMetadata"]
    if not names:
        return said
    name = random.choice(names)
    value = said[name]
    match random.randrange(5):
        case 0:
            del said[name]
        case 1:
            said[name] = None
        case 2 if isinstance(value, list) and value:
            said[name] = [one for one in value if random.random() < 0.5]
        case 3 if isinstance(value, list) and value:
            strange = {"Id": random.choice(["99", "-1", "", "x", "٣"]), "MessageId": "?", "Code": "?", "Error": None}
            said[name] = [*value, strange] if random.random() < 0.5 or name == "Responses" else [strange, *value]
        case 4 if isinstance(value, list) and value and isinstance(value[0], dict):
            # an error or an attribute that is left out would be a lie, and nobody can tell a lie
            true = ("Error", "MessageAttributes")
            said[name] = [{k: v for k, v in one.items() if k in true or random.random() < 0.7} for one in value]
        case _ if isinstance(value, dict):
            # a queue that seems to have no redrive policy is such a lie, too
            said[name] = {k: v for k, v in value.items() if k == "RedrivePolicy" or random.random() < 0.5}
    return said


@dataclass(slots=True)
class _Client:
    """What a Caller calls: any operation, with the SDK's own tries."""

    wire: Wire
    region: str
    service: str
    attempts: int
    read_timeout_s: float
    meta: Any = field(default_factory=lambda: SimpleNamespace(endpoint_url=ENDPOINT))

    def __getattr__(self, operation: str) -> Any:
        return partial(self._call, operation)

    async def _call(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        for tried in range(1, self.attempts + 1):
            try:
                return await self._once(operation, parameters)
            except ClientError as fault:
                code, status = fault.response["Error"]["Code"], fault.response["ResponseMetadata"]["HTTPStatusCode"]
                if tried == self.attempts or (status < 500 and code not in RETRIED_CODES):
                    raise
            except (ConnectTimeoutError, ReadTimeoutError, ConnectionClosedError):
                if tried == self.attempts:
                    raise
            await asyncio.sleep(0.1 * 2**tried * self.wire.random.random())
        raise AssertionError("at least one try is made")

    async def _once(self, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(self.read_timeout_s):
                return await self.wire.ask(self.region, self.service, operation, parameters)
        except TimeoutError:
            raise ReadTimeoutError(endpoint_url=ENDPOINT) from None


class _Caller(Caller):
    def prepare(self, *operations: str) -> None:
        """Not here: nobody reads the series that were never counted, and thousands of stories would make them."""


class FakeClients(Clients):
    """Real callers, with their time limits and their judgement of faults, on fake clients."""

    def __init__(self, wire: Wire, clock: Clock, metrics: Metrics, around: Around | None = None) -> None:
        self.clock = clock
        self._metrics = metrics
        self._around = around or (lambda *_: nullcontext())
        self._wire = wire

    async def open(
        self,
        service: Any,
        region: Region,
        *,
        pool: int,
        attempts: int,
        read_timeout_s: float = READ_TIMEOUT_S,
        total_timeout_s: float | None = None,
    ) -> Caller:
        total = total_timeout_s or attempts * (CONNECT_TIMEOUT_S + read_timeout_s) + 2.0
        client = _Client(self._wire, region, service, attempts, read_timeout_s)
        return _Caller(client, service, region, self.clock, self._metrics, total, self._around)
