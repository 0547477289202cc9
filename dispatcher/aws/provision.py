"""Creates what the dispatcher needs on an emulator: queues, dead-letter queues, the ledger's table. Idempotent.

In production Terraform does this; here are the same names and the same numbers.
"""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from dispatcher.aws.clients import Caller, Clients
from dispatcher.errors import AwsError, DispatcherError
from dispatcher.model import Region
from dispatcher.settings import is_aws

MASTER_VISIBILITY_S = 600
REGIONAL_VISIBILITY_S = 3600
RECEIVES_BEFORE_REDRIVE = 3
RETENTION_S = 4 * 86400
DEAD_LETTER_RETENTION_S = 14 * 86400
LONG_POLL_S = 20
POOL = 10
ATTEMPTS = 3


class RealAwsError(DispatcherError):
    """The endpoint is AWS itself, where Terraform should create things."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What was created, in the terms of the settings."""

    home: Region
    master_queue_url: str
    dead_letter_queue_url: str
    regional_queue_urls: dict[Region, str]
    ledger_table: str

    def environment(self) -> dict[str, str]:
        """The settings for `dispatcher run`."""
        return {
            "DISPATCHER_HOME_REGION": self.home,
            "DISPATCHER_MASTER_QUEUE_URL": self.master_queue_url,
            "DISPATCHER_DEAD_LETTER_QUEUE_URL": self.dead_letter_queue_url,
            "DISPATCHER_REGIONS": json.dumps(self.regional_queue_urls),
            "DISPATCHER_LEDGER_TABLE": self.ledger_table,
        }


async def provision(
    clients: Clients, *, name: str, home: Region, regions: Sequence[Region], on_aws: bool = False
) -> AsyncIterator[str | Resources]:
    """Create everything, saying each thing done; last of all comes what there is now.

    Raises RealAwsError before anything is created if the endpoint is AWS itself and `on_aws` is false; AwsError.
    """
    callers = {r: await clients.open("sqs", r, pool=POOL, attempts=ATTEMPTS) for r in dict.fromkeys([home, *regions])}
    table_caller = await clients.open("dynamodb", home, pool=POOL, attempts=ATTEMPTS)
    if not on_aws:
        for caller in (*callers.values(), table_caller):
            if is_aws(caller.endpoint):
                raise RealAwsError(
                    f"{caller.endpoint} is AWS itself: set AWS_ENDPOINT_URL to an emulator, or say --yes"
                )
    master, dead_letters = await _queue_pair(callers[home], f"{name}-master", MASTER_VISIBILITY_S)
    yield f"queue {name}-master and its dead-letter queue in {home}"
    regional = {}
    for region in regions:
        regional[region], _ = await _queue_pair(callers[region], f"{name}-regional", REGIONAL_VISIBILITY_S)
        yield f"queue {name}-regional and its dead-letter queue in {region}"
    table = f"{name}-ledger"
    await create_table(table_caller, table)
    yield f"table {table} in {home}"
    yield Resources(home, master, dead_letters, regional, table)


async def _queue_pair(call: Caller, name: str, visibility_s: int) -> tuple[str, str]:
    dead_letters = await _queue(call, f"{name}-dlq", {"MessageRetentionPeriod": str(DEAD_LETTER_RETENTION_S)})
    answer = await call("get_queue_attributes", QueueUrl=dead_letters, AttributeNames=["QueueArn"])
    redrive = {
        "deadLetterTargetArn": answer["Attributes"]["QueueArn"],
        "maxReceiveCount": str(RECEIVES_BEFORE_REDRIVE),
    }
    attributes = {
        "VisibilityTimeout": str(visibility_s),
        "MessageRetentionPeriod": str(RETENTION_S),
        "ReceiveMessageWaitTimeSeconds": str(LONG_POLL_S),
        "RedrivePolicy": json.dumps(redrive),
    }
    return await _queue(call, name, attributes), dead_letters


async def _queue(call: Caller, name: str, attributes: dict[str, str]) -> str:
    answer = await call("create_queue", QueueName=name, Attributes=attributes)
    url = str(answer["QueueUrl"])
    if is_aws(call.endpoint):
        return url
    return call.endpoint.rstrip("/") + urlsplit(url).path  # emulators like to name hosts that do not resolve


async def create_table(call: Caller, name: str) -> None:
    """Create the ledger's table, or find it there. Raises AwsError."""
    try:
        await call(
            "create_table",
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "request_id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "request_id", "AttributeType": "S"}],
        )
    except AwsError as fault:
        if fault.code != "ResourceInUseException":
            raise
    await call.until("table_exists", TableName=name)
    ttl = await call("describe_time_to_live", TableName=name)
    if ttl.get("TimeToLiveDescription", {}).get("TimeToLiveStatus") not in ("ENABLED", "ENABLING"):
        await call(
            "update_time_to_live",
            TableName=name,
            TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires_at"},
        )
