"""Is everything there that the daemon needs, may it use it, and do the queues' settings fit? Changes nothing.

A permission is tested by a call that AWS refuses for another reason once it has passed authorisation: an empty
batch, a condition that cannot hold.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dispatcher.aws.clients import Caller, Clients
from dispatcher.aws.ledger import PROBE_KEY
from dispatcher.aws.queues import read_attributes, redrive_target
from dispatcher.errors import AwsError, Cause
from dispatcher.model import Region
from dispatcher.settings import Settings, region_of

POOL = 10
ATTEMPTS = 2
_NOBODY = {"request_id": {"S": PROBE_KEY}}
_ADVICE = {
    Cause.MISSING: "it does not exist: check the setting, the account and the Region",
    Cause.DENIED: "not allowed: check credentials and the task role",
    Cause.UNREACHABLE: "no connection: check network, endpoint and Region",
    Cause.AMBIGUOUS: "no answer: check network and endpoint",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    ok: bool
    what: str
    detail: str


async def check(settings: Settings, clients: Clients) -> AsyncIterator[Finding]:
    """Give a finding for each thing looked at, as soon as it is known."""
    yield Finding(True, "configuration", f"{len(settings.regions)} Regions, policy {settings.routing_policy}")
    home = Region(settings.home_region)
    sqs = await clients.open("sqs", home, pool=POOL, attempts=ATTEMPTS)
    async for finding in _master(settings, sqs):
        yield finding
    for region, rules in settings.regions.items():
        call = await clients.open("sqs", region, pool=POOL, attempts=ATTEMPTS)
        for url in rules.queue_urls:
            what = f"regional queue {region}" + (f" ({url.rpartition('/')[2]})" if rules.queues else "")
            moves = ["delete_message_batch", "change_message_visibility_batch"] if settings.rescue else []
            async for finding in _queue(call, what, url, ["send_message_batch", *moves]):
                yield finding
            if settings.rescue:
                yield await _may_receive(what, call, url)
    if settings.interruption_queue_url:
        what, url = "interruption queue", settings.interruption_queue_url
        async for finding in _queue(sqs, what, url, ["delete_message_batch"]):
            yield finding
        yield await _may_receive(what, sqs, url)
    table = await clients.open("dynamodb", home, pool=POOL, attempts=ATTEMPTS)
    async for finding in _ledger(settings, table):
        yield finding


async def _master(settings: Settings, call: Caller) -> AsyncIterator[Finding]:
    url = settings.master_queue_url
    batches = ["delete_message_batch", "change_message_visibility_batch"]
    async for finding in _queue(call, "master queue", url, batches):
        yield finding
    yield await _may_receive("master queue", call, url)
    try:
        target = settings.dead_letter_queue_url or await redrive_target(call, url)
    except AwsError as fault:
        yield _failed("dead-letter queue", fault)
        return
    if target is None:
        advice = "none: give the master queue a redrive policy, or set DISPATCHER_DEAD_LETTER_QUEUE_URL"
        yield Finding(False, "dead-letter queue", advice)
        return
    async for finding in _queue(call, "dead-letter queue", target, ["send_message_batch"]):
        yield finding


async def _may_receive(what: str, call: Caller, url: str) -> Finding:
    # one message more than SQS allows: refused for that, and nothing is received
    return await _allowed(f"{what}: receive_message", call("receive_message", QueueUrl=url, MaxNumberOfMessages=99))


async def _queue(call: Caller, what: str, url: str, batches: list[str]) -> AsyncIterator[Finding]:
    if (there := region_of(url)) not in (None, call.region):
        yield Finding(False, what, f"{url} is in {there}, but calls are signed for {call.region}: correct the setting")
    try:
        attributes = await read_attributes(call, url, ["All"])
    except AwsError as fault:
        yield _failed(what, fault)
        return
    if attributes.get("FifoQueue") == "true":
        yield Finding(False, what, f"{url} is FIFO: a standard queue is needed")
        return
    counts = f"{attributes.get('ApproximateNumberOfMessages', '?')} visible"
    yield Finding(True, what, f"{url}, {counts}, visibility {attributes.get('VisibilityTimeout', '?')} s")
    for operation in batches:
        yield await _allowed(f"{what}: {operation}", call(operation, QueueUrl=url, Entries=[]))


async def _ledger(settings: Settings, call: Caller) -> AsyncIterator[Finding]:
    table = settings.ledger_table
    try:
        described: Mapping[str, Any] = (await call("describe_table", TableName=table))["Table"]
    except AwsError as fault:
        yield _failed("ledger", fault)
        return
    keys = [(key["AttributeName"], key["KeyType"]) for key in described.get("KeySchema", [])]
    types = {a["AttributeName"]: a["AttributeType"] for a in described.get("AttributeDefinitions", [])}
    fits = keys == [("request_id", "HASH")] and types.get("request_id") == "S"
    yield Finding(
        fits, "ledger", f"table {table}" if fits else f"its key must be request_id (string) alone, not {keys}"
    )
    try:
        ttl = (await call("describe_time_to_live", TableName=table)).get("TimeToLiveDescription", {})
        on = ttl.get("AttributeName") == "expires_at" and ttl.get("TimeToLiveStatus") in ("ENABLED", "ENABLING")
        yield Finding(
            on, "ledger: TTL", "on expires_at" if on else "enable it on expires_at, or the table grows for ever"
        )
    except AwsError as fault:
        yield _failed("ledger: TTL", fault)
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
        yield await _allowed(f"ledger: {operation}", ask())


async def _member(call: Caller, statement: Mapping[str, Any]) -> None:
    answer = await call("batch_execute_statement", Statements=[statement])
    for member in answer.get("Responses") or []:
        code = (member.get("Error") or {}).get("Code", "")
        if code == "AccessDenied":
            raise AwsError(Cause.DENIED, code, code)


async def _allowed(what: str, asking: Awaitable[Any]) -> Finding:
    try:
        await asking
    except AwsError as fault:
        if fault.cause in _ADVICE:
            return _failed(what, fault)
    return Finding(True, what, "allowed")


def _failed(what: str, fault: AwsError) -> Finding:
    return Finding(False, what, f"{_ADVICE.get(fault.cause, 'refused')} ({fault})")
