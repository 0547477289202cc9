"""Whether all that a dispatcher needs is there, may be used, and fits: what is wrong, and what to do about it.

Nothing is received, sent or written: permissions are tried with calls that AWS must refuse for another reason, such as
an empty batch or a condition that cannot hold.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dispatcher.aws.clients import Caller, Clients
from dispatcher.aws.ledger import PROBE_KEY
from dispatcher.aws.queues import read_attributes, redrive_target
from dispatcher.clock import Clock
from dispatcher.commands.advice import NO_PERMISSION, advice, is_no_permission
from dispatcher.errors import AwsError, Cause
from dispatcher.model import Region
from dispatcher.settings import Settings, region_of

POOL = 10
ATTEMPTS = 2
RECEIVES_MIN = 3
"""Fewer receives before the dead-letter queue, and one crash and one drain send a good message there."""
SKEW_S, SKEW_MAX_S = 5.0, 300.0
"""AWS refuses what is signed with a clock that is five minutes off (Signature Version 4 reference)."""
_NOBODY = {"request_id": {"S": PROBE_KEY}}
_ACTIONS = {  # what a role needs for a call, where its name is not the same
    "send_message_batch": "sqs:SendMessage",
    "delete_message_batch": "sqs:DeleteMessage",
    "change_message_visibility_batch": "sqs:ChangeMessageVisibility",
    "receive_message": "sqs:ReceiveMessage",
    "get_queue_attributes": "sqs:GetQueueAttributes",
    "get_queue_url": "sqs:GetQueueUrl",
}
_MEANT = (
    "EmptyBatchRequest",
    "ReadCountOutOfRange",
    "ConditionalCheckFailed",
    "ConditionalCheckFailedException",
    "ValidationError",
    "ValidationException",
)
"""The refusals that were asked for: authorisation comes first, so it was passed."""


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"  # it works, and will hurt one day
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, what was found, and what to do about it (empty if nothing)."""

    level: Level
    what: str
    detail: str
    todo: str = ""

    @property
    def ok(self) -> bool:
        return self.level is not Level.FAIL


Findings = AsyncIterator[Finding]


async def check(settings: Settings, clients: Clients) -> Findings:
    """Look at everything at once; give the findings in one order, each as soon as those before it are known."""
    yield Finding(Level.OK, "configuration", f"{len(settings.regions)} Regions, policy {settings.routing_policy}")
    home = Region(settings.home_region)
    sqs = await clients.open("sqs", home, pool=POOL, attempts=ATTEMPTS)
    table = await clients.open("dynamodb", home, pool=POOL, attempts=ATTEMPTS)
    looking = [_master(settings, sqs)]
    for region, rules in settings.regions.items():
        call = await clients.open("sqs", region, pool=POOL, attempts=ATTEMPTS)
        for url in rules.queue_urls:
            what = f"regional queue {region}" + (f" ({url.rpartition('/')[2]})" if rules.queues else "")
            looking.append(_regional(settings, call, what, url))
    if settings.interruption_queue_url:
        looking.append(_interruptions(sqs, settings.interruption_queue_url))
    looking.append(_ledger(settings, table))
    tasks = [asyncio.ensure_future(_all(findings)) for findings in looking]
    try:
        for task in tasks:
            for finding in await task:
                yield finding
    finally:  # whoever reads may stop early
        for task in tasks:
            task.cancel()
    yield _clock(clients.clock)


async def _all(findings: Findings) -> list[Finding]:
    return [finding async for finding in findings]


# --- queues ---------------------------------------------------------------------------------------------------------


async def _master(settings: Settings, call: Caller) -> Findings:
    what, url = "master queue", settings.master_queue_url
    attributes = None
    async for finding in _queue(call, what, url, ["delete_message_batch", "change_message_visibility_batch"]):
        yield finding
    try:
        attributes = await read_attributes(call, url, ["All"])
    except AwsError as fault:
        if not is_no_permission(fault):  # said already, and nothing else can be
            return
    yield await _may_receive(what, call, url)
    if attributes is not None:
        yield _visibility(settings, int(attributes.get("VisibilityTimeout", 0)))
    try:
        target = settings.dead_letter_queue_url or await redrive_target(call, url)
    except AwsError as fault:
        yield _failed("dead-letter queue", fault, "get_queue_url")
        return
    redrive = _redrive(attributes)
    if attributes is not None and redrive is None:
        detail = "it has no redrive policy: a message that fails again and again comes back for ever"
        yield Finding(Level.FAIL, f"{what}: redrive", detail, "give it one, with maxReceiveCount 3")
    elif redrive is not None and redrive < RECEIVES_MIN:
        detail = f"maxReceiveCount is {redrive}: a crash and a drain send a good message to the dead-letter queue"
        yield Finding(Level.WARN, f"{what}: redrive", detail, f"set it to {RECEIVES_MIN}")
    if target is None:
        todo = "give the master queue a redrive policy, or set DISPATCHER_DEAD_LETTER_QUEUE_URL"
        yield Finding(
            Level.FAIL, "dead-letter queue", "there is none: rejected messages would stay in the master", todo
        )
        return
    async for finding in _queue(call, "dead-letter queue", target, ["send_message_batch"]):
        yield finding
    if attributes is not None:
        try:
            letters = await read_attributes(call, target, ["MessageRetentionPeriod"])
        except AwsError:
            return  # said above
        yield _retention(settings, attributes, letters)


async def _regional(settings: Settings, call: Caller, what: str, url: str) -> Findings:
    moves = ["delete_message_batch", "change_message_visibility_batch"] if settings.rescue else []
    async for finding in _queue(call, what, url, ["send_message_batch", *moves]):
        yield finding
    if settings.rescue:
        yield await _may_receive(what, call, url)
    try:
        attributes = await read_attributes(call, url, ["All"])
    except AwsError:
        return  # said above
    if _redrive(attributes) is None:
        detail = "it has no redrive policy: what no worker can serve is tried for ever"
        yield Finding(Level.WARN, f"{what}: redrive", detail, "give it one, with a dead-letter queue of its own")


async def _interruptions(call: Caller, url: str) -> Findings:
    async for finding in _queue(call, "interruption queue", url, ["delete_message_batch"]):
        yield finding
    yield await _may_receive("interruption queue", call, url)


async def _queue(call: Caller, what: str, url: str, batches: list[str]) -> Findings:
    if (there := region_of(url)) not in (None, call.region):
        detail = f"{url} is in {there}, but calls are signed for {call.region}"
        yield Finding(Level.FAIL, what, detail, f"name a queue of {call.region}, or move this one to {there}'s entry")
    try:
        attributes = await read_attributes(call, url, ["All"])
    except AwsError as fault:
        yield _failed(what, fault, "get_queue_attributes", url)
        if not is_no_permission(fault):
            return
    else:
        if attributes.get("FifoQueue") == "true":
            yield Finding(Level.FAIL, what, f"{url} is a FIFO queue", "use a standard queue")
            return
        counts = f"{attributes.get('ApproximateNumberOfMessages', '?')} visible"
        visibility = f"visibility {attributes.get('VisibilityTimeout', '?')} s"
        yield Finding(Level.OK, what, f"{url}, {counts}, {visibility}")
    for operation in batches:
        yield await _allowed(what, operation, call(operation, QueueUrl=url, Entries=[]))


async def _may_receive(what: str, call: Caller, url: str) -> Finding:
    # more messages than SQS allows: refused for that, and nothing is received
    return await _allowed(what, "receive_message", call("receive_message", QueueUrl=url, MaxNumberOfMessages=99))


def _visibility(settings: Settings, visibility_s: int) -> Finding:
    """The dispatcher asks for a visibility of its own; a console or a script that receives gets the queue's."""
    what, lease_s = "master queue: visibility", settings.claim_lease_seconds
    if visibility_s < lease_s:
        detail = f"its timeout, {visibility_s} s, is shorter than a claim's lease, {lease_s:g} s"
        return Finding(Level.FAIL, what, detail, "set the queue's VisibilityTimeout to 600")
    return Finding(Level.OK, what, f"its timeout, {visibility_s} s, outlasts a claim's lease, {lease_s:g} s")


def _retention(settings: Settings, master: Mapping[str, str], letters: Mapping[str, str]) -> Finding:
    what, kept = "ledger: retention", settings.ledger_retention_seconds
    way = int(master.get("MessageRetentionPeriod", 0)) + int(letters.get("MessageRetentionPeriod", 0))
    if kept < way:
        detail = f"a request is remembered for {kept / 86400:g} d, but its message may come back for {way / 86400:g} d"
        return Finding(Level.WARN, what, detail, f"set DISPATCHER_LEDGER_RETENTION_SECONDS to {way + 86400} or more")
    return Finding(Level.OK, what, f"{kept / 86400:g} d outlast a message's way of {way / 86400:g} d at most")


def _redrive(attributes: Mapping[str, str] | None) -> int | None:
    """Return after how many receives SQS moves a message; None if it never does."""
    try:
        return int(json.loads((attributes or {}).get("RedrivePolicy") or "{}")["maxReceiveCount"])
    except (KeyError, TypeError, ValueError):
        return None


# --- the ledger -----------------------------------------------------------------------------------------------------


async def _ledger(settings: Settings, call: Caller) -> Findings:
    table = settings.ledger_table
    try:
        described: Mapping[str, Any] = (await call("describe_table", TableName=table))["Table"]
    except AwsError as fault:
        yield _failed("ledger", fault, "describe_table", table)
        if not is_no_permission(fault):
            return
    else:
        yield _key(table, described)
    try:
        ttl = (await call("describe_time_to_live", TableName=table)).get("TimeToLiveDescription", {})
    except AwsError as fault:
        yield _failed("ledger: TTL", fault, "describe_time_to_live", table)
    else:
        if ttl.get("AttributeName") == "expires_at" and ttl.get("TimeToLiveStatus") in ("ENABLED", "ENABLING"):
            yield Finding(Level.OK, "ledger: TTL", "on expires_at")
        else:
            yield Finding(Level.FAIL, "ledger: TTL", "the table would grow for ever", "enable TTL on expires_at")
    impossible = "attribute_exists(request_id)"
    nothing: dict[str, Callable[[], Awaitable[Any]]] = {
        "get_item": lambda: call("get_item", TableName=table, Key=_NOBODY),
        "put_item": lambda: call("put_item", TableName=table, Item=_NOBODY, ConditionExpression=impossible),
        "update_item": lambda: call("update_item", TableName=table, Key=_NOBODY, ConditionExpression=impossible),
    }
    if settings.ledger_batching:
        key = [_NOBODY["request_id"]]
        update = {
            "Statement": f'UPDATE "{table}" SET "state" = ? WHERE "request_id" = ? AND "owner" = ?',  # noqa: S608  the operator's own table
            "Parameters": [{"S": "-"}, *key, {"S": "-"}],
        }
        # the key has the wrong type, so nothing is inserted
        insert = {"Statement": f"INSERT INTO \"{table}\" VALUE {{'request_id': ?}}", "Parameters": [{"N": "0"}]}
        nothing |= {
            "batch_get_item": lambda: call("batch_get_item", RequestItems={table: {"Keys": [_NOBODY]}}),
            "PartiQLUpdate": lambda: _member(call, update),
            "PartiQLInsert": lambda: _member(call, insert),
        }
    for operation, ask in nothing.items():
        yield await _allowed("ledger", operation, ask())


def _key(table: str, described: Mapping[str, Any]) -> Finding:
    keys = [(key["AttributeName"], key["KeyType"]) for key in described.get("KeySchema", [])]
    types = {a["AttributeName"]: a["AttributeType"] for a in described.get("AttributeDefinitions", [])}
    if keys == [("request_id", "HASH")] and types.get("request_id") == "S":
        return Finding(Level.OK, "ledger", f"table {table}")
    found = ", ".join(f"{name} ({types.get(name, '?')}, {kind})" for name, kind in keys)
    return Finding(
        Level.FAIL, "ledger", f"the key of {table} is {found}", "make a table with request_id (S) alone as key"
    )


async def _member(call: Caller, statement: Mapping[str, Any]) -> None:
    answer = await call("batch_execute_statement", Statements=[statement])
    for member in answer.get("Responses") or []:
        code = (member.get("Error") or {}).get("Code", "")
        if code in NO_PERMISSION:
            raise AwsError(Cause.DENIED, code, code)


# --- what a call tells ----------------------------------------------------------------------------------------------


def _clock(clock: Clock) -> Finding:
    what, offset_s = "clock", clock.offset_s
    if not clock.heard:
        return Finding(Level.WARN, what, "not compared: AWS answered nothing", "mend what is above first")
    if abs(offset_s) < SKEW_S:
        return Finding(Level.OK, what, f"this machine's is within {SKEW_S:g} s of AWS's")
    detail = f"this machine's is {abs(offset_s):.0f} s {'behind' if offset_s > 0 else 'ahead of'} AWS's"
    if abs(offset_s) < SKEW_MAX_S:
        return Finding(Level.WARN, what, detail, "synchronise it (NTP); the dispatcher itself corrects for it")
    return Finding(Level.FAIL, what, f"{detail}: AWS refuses what it signs", "synchronise it (NTP)")


async def _allowed(what: str, operation: str, asking: Awaitable[Any]) -> Finding:
    what = f"{what}: {operation}"
    try:
        await asking
    except AwsError as fault:
        if fault.cause in (Cause.DENIED, Cause.MISSING, Cause.UNREACHABLE, Cause.AMBIGUOUS):
            return _failed(what, fault, operation)
        if fault.cause is not Cause.INVALID and fault.code.rpartition(".")[2] not in _MEANT:
            return Finding(Level.WARN, what, f"it cannot be told whether it is allowed ({fault})", "try again")
    return Finding(Level.OK, what, "allowed")


def _failed(what: str, fault: AwsError, operation: str, resource: str = "") -> Finding:
    detail, todo = advice(fault, _ACTIONS.get(operation) or f"dynamodb:{_pascal(operation)}")
    named = f"{resource}: " if resource else ""
    return Finding(Level.FAIL, what, f"{named}{detail} ({fault})", todo)


def _pascal(operation: str) -> str:
    return operation if operation[0].isupper() else "".join(map(str.capitalize, operation.split("_")))
