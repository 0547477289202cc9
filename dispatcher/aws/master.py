"""The master queue: receive, keep invisible, acknowledge.

Knows nothing of requests: a delivery's body is text to it.
"""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

import structlog

from dispatcher.aws.clients import Caller
from dispatcher.aws.faults import answers_by_entry
from dispatcher.aws.queues import ENTRIES_MAX
from dispatcher.lanes.batch import BatchLimits
from dispatcher.lanes.lane import Lane
from dispatcher.model import Attribute, Delivery

log = structlog.get_logger()

VISIBILITY_MAX_S = 43200  # SQS: most seconds of invisibility, counted from the receive (ChangeMessageVisibility)
DELETE_LINGER_S = 0.05  # off the latency path: better full batches
DELETES_MAX = 20  # calls at once: what one core can dispatch, with answers that take 20 ms
EXTEND_LINGER_S = 0.02


class MasterQueue:
    """Use as a context: its lanes run inside. `receiving` is a client of its own: parked polls block nothing."""

    def __init__(self, url: str, receiving: Caller, caller: Caller, *, wait_s: int, visibility_s: int) -> None:
        self.url = url
        self._receiving = receiving
        self._call = caller
        self._wait_s = wait_s
        self._visibility_s = visibility_s
        limits = BatchLimits(items=ENTRIES_MAX)
        self._deletes = Lane(self._delete, limits=limits, linger_s=DELETE_LINGER_S, flushes_max=DELETES_MAX)
        self._changes = Lane(self._change, limits=limits, linger_s=EXTEND_LINGER_S, flushes_max=8)
        self._stack = AsyncExitStack()
        receiving.prepare("receive_message")
        caller.prepare("delete_message_batch", "change_message_visibility_batch")

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._deletes)
        await self._stack.enter_async_context(self._changes)
        return self

    async def __aexit__(self, *reason: Any) -> None:
        await self._stack.__aexit__(*reason)

    def hurry(self) -> None:
        self._deletes.hurry()
        self._changes.hurry()

    async def receive(self, count: int) -> list[Delivery]:
        """Long-poll for up to `count` (1–10) deliveries, invisible to others for the visibility from now on.

        Never cancel it: SQS may hand the messages to the dead poll, and they are gone for a visibility timeout.
        """
        answer = await self._receiving(
            "receive_message",
            QueueUrl=self.url,
            MaxNumberOfMessages=count,
            WaitTimeSeconds=self._wait_s,
            VisibilityTimeout=self._visibility_s,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["SentTimestamp", "ApproximateReceiveCount", "AWSTraceHeader"],
        )
        deliveries = []
        for message in answer.get("Messages") or []:
            try:
                deliveries.append(_delivery(message))
            except (AttributeError, KeyError, TypeError, ValueError) as fault:  # it returns, and SQS counts the receive
                log.error("delivery.unreadable", fault=repr(fault))
        return deliveries

    async def acknowledge(self, delivery: Delivery) -> None:
        """Delete the message. Raises AwsError; with Cause.INVALID the receipt is too old, and it will come again."""
        await self._deletes.submit(delivery.receipt_handle)

    async def acknowledge_all(self, deliveries: Sequence[Delivery]) -> Sequence[Exception | None]:
        """The same for several at once; returns each one's own error, or None."""
        return await self._deletes.submit_all([delivery.receipt_handle for delivery in deliveries])

    async def keep_invisible(self, delivery: Delivery, seconds: int) -> None:
        """Make the message visible `seconds` from now, neither sooner nor later; 0 hands it back."""
        await self._changes.submit((delivery.receipt_handle, min(max(0, seconds), VISIBILITY_MAX_S)))

    async def _delete(self, handles: Sequence[str]) -> Sequence[Exception | None]:
        entries = [{"Id": str(i), "ReceiptHandle": handle} for i, handle in enumerate(handles)]
        answer = await self._call("delete_message_batch", QueueUrl=self.url, Entries=entries)
        return answers_by_entry(answer, len(handles), lambda _: None)

    async def _change(self, changes: Sequence[tuple[str, int]]) -> Sequence[Exception | None]:
        entries = [
            {"Id": str(i), "ReceiptHandle": handle, "VisibilityTimeout": seconds}
            for i, (handle, seconds) in enumerate(changes)
        ]
        answer = await self._call("change_message_visibility_batch", QueueUrl=self.url, Entries=entries)
        return answers_by_entry(answer, len(changes), lambda _: None)


def _delivery(message: Mapping[str, Any]) -> Delivery:
    body, receipt_handle = message.get("Body"), message.get("ReceiptHandle")
    if body is None or not receipt_handle:  # not all was read; rejected as empty, the message would be lost
        raise ValueError("an answer without a body, or without a receipt")
    system = message.get("Attributes") or {}
    return Delivery(
        message_id=str(message.get("MessageId") or ""),
        receipt_handle=str(receipt_handle),
        body=str(body),
        attributes={
            name: Attribute(
                str(value.get("DataType") or "String"),
                value["BinaryValue"] if "BinaryValue" in value else str(value.get("StringValue") or ""),
            )
            for name, value in (message.get("MessageAttributes") or {}).items()
        },
        trace_header=system.get("AWSTraceHeader"),
        sent_at=float(system.get("SentTimestamp") or 0) / 1000,
        receives=int(system.get("ApproximateReceiveCount") or 1),
    )
