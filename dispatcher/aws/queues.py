"""What any queue can be asked about itself."""

import asyncio
import json
from collections.abc import Mapping, Sequence

from dispatcher.aws.clients import Caller
from dispatcher.errors import Cause, RefusedError
from dispatcher.model import Depth
from dispatcher.policy.envelope import BYTES_MAX
from dispatcher.settings import is_aws

ENTRIES_MAX = 10  # SQS: entries a batch (SendMessageBatch reference)

_DEPTHS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]


LAG_S = 30.0
"""How late SQS's counts are taken to be: they settle within about a minute (GetQueueAttributes reference)."""


def lag_s(url: str) -> float:
    """Return how late a queue's counts are, in seconds; an emulator's are not."""
    return LAG_S if is_aws(url) else 0.0


async def read_depths(call: Caller, urls: Sequence[str]) -> Depth:
    """Return one reading of several queues together."""
    read = await asyncio.gather(*(read_depth(call, url) for url in urls))
    return Depth(sum(d.visible for d in read), sum(d.in_flight for d in read), sum(d.delayed for d in read))


async def read_depth(call: Caller, url: str) -> Depth:
    """Return one reading of a queue. An answer without the counts is an error, never a zero."""
    counts = await read_attributes(call, url, _DEPTHS)
    try:
        visible, in_flight, delayed = (int(counts[name]) for name in _DEPTHS)
    except (KeyError, TypeError, ValueError) as fault:
        raise RefusedError(Cause.REFUSED, f"depth answered without its counts: {fault!r}") from fault
    return Depth(visible, in_flight, delayed)


async def redrive_target(call: Caller, url: str) -> str | None:
    """Return the URL of the dead-letter queue that the queue's RedrivePolicy names; None without one."""
    attributes = await read_attributes(call, url, ["QueueArn", "RedrivePolicy"])
    if "QueueArn" not in attributes:  # every queue has one; an answer that lacks it proves nothing about the other
        raise RefusedError(Cause.REFUSED, f"the answer for the redrive policy of {url} lacks its attributes")
    try:
        arn = json.loads(attributes.get("RedrivePolicy") or "{}").get("deadLetterTargetArn")
        if not arn:
            return None
        account, name = arn.split(":")[4:6]
    except (AttributeError, TypeError, ValueError) as fault:
        raise RefusedError(Cause.REFUSED, f"the redrive policy of {url} cannot be read: {fault}") from fault
    answer = await call("get_queue_url", QueueName=name, QueueOwnerAWSAccountId=account)
    if not answer.get("QueueUrl"):
        raise RefusedError(Cause.REFUSED, f"the answer for the URL of {name} lacks it")
    return str(answer["QueueUrl"])


async def size_limit(call: Caller, url: str) -> int:
    """Return the most bytes that the queue takes a message of: SQS's limit, or less where its owner says so."""
    attributes = await read_attributes(call, url, ["MaximumMessageSize"])
    said = attributes.get("MaximumMessageSize") or ""
    return int(said) if said.isdecimal() else BYTES_MAX


async def read_attributes(call: Caller, url: str, names: list[str]) -> Mapping[str, str]:
    """Return those of the queue's attributes that it has; SQS gives all of them as text."""
    answer = await call("get_queue_attributes", QueueUrl=url, AttributeNames=names)
    return answer.get("Attributes") or {}
