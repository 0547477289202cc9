"""A queue that messages are sent to: a regional queue, or the dead-letter queue."""

from collections.abc import Callable, Sequence
from typing import Any, Self

from dispatcher.aws.clients import Caller
from dispatcher.aws.faults import answers_by_entry
from dispatcher.aws.queues import ENTRIES_MAX
from dispatcher.errors import AwsError, Cause, HeldOffError, LeaseTooShortError, RefusedError
from dispatcher.lanes.batch import BatchLimits
from dispatcher.lanes.lane import Lane
from dispatcher.model import Outgoing
from dispatcher.policy.envelope import BYTES_MAX, OURS, OURS_BYTES_MAX, OURS_FIRST, size_of

SEND_LINGER_S = 0.02
FLUSHES_MAX = 40
"""Of a queue together: 150 ms away, a thousand messages a second fly in fifteen. Each has a connection."""
_SMALL = 15_000  # characters, of four bytes at most; what is ours fits beside it
_TOO_LONG = "BatchRequestTooLong"


class SendingQueue:
    """Use as a context: its lane runs inside."""

    def __init__(
        self,
        url: str,
        caller: Caller,
        *,
        admits: Callable[[int], int] = lambda count: count,
        withdraw: Callable[[], None] = lambda: None,
        learn: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """The breaker: `admits` is asked how many of a batch may go; then `learn` hears whether the queue worked, or
        `withdraw` that the call was not made.
        """
        self.url = url
        self._call = caller
        self._admits = admits
        self._withdraw = withdraw
        self._learn = learn
        self._sends = Lane(
            self._send,
            limits=BatchLimits(items=ENTRIES_MAX, size=BYTES_MAX),
            linger_s=SEND_LINGER_S,
            flushes_max=FLUSHES_MAX,
            eager=True,
            whole=True,  # whoever is accepted is confirmed when all of its lot are answered: at once, so
            size_of=_size_of,
        )
        caller.prepare("send_message_batch")

    async def __aenter__(self) -> Self:
        await self._sends.__aenter__()
        return self

    async def __aexit__(self, *reason: Any) -> None:
        await self._sends.__aexit__(*reason)

    def hurry(self) -> None:
        self._sends.hurry()

    async def send(self, out: Outgoing) -> str:
        """Return the SQS message id of the accepted message.

        Raises LeaseTooShortError, HeldOffError, RefusedError (nothing was sent; Cause.INVALID: this message cannot
        be accepted), AmbiguousError (it may have been).
        """
        return await self._sends.submit(out)

    async def send_all(self, outs: Sequence[Outgoing]) -> Sequence[str | Exception]:
        """The same for several at once; returns each one's own id or error."""
        return await self._sends.submit_all(outs)

    async def _send(self, batch: Sequence[Outgoing]) -> Sequence[str | Exception]:
        admitted = self._admits(len(batch))
        answers = list(await self._send_departing(batch[:admitted])) if admitted else []
        return [*answers, *[HeldOffError("the breaker is open") for _ in batch[admitted:]]]

    async def _send_departing(self, batch: Sequence[Outgoing]) -> Sequence[str | Exception]:
        """Send those that may still depart now; each hears so, or stays."""
        stay: dict[int, Exception] = {}
        for i, out in enumerate(batch):
            try:
                out.departs()
            except LeaseTooShortError as late:
                stay[i] = late
        if len(stay) == len(batch):
            self._withdraw()
            return [*stay.values()]
        if not stay:
            return await self._send_now(batch)
        answers = iter(await self._send_now([out for i, out in enumerate(batch) if i not in stay]))
        return [stay.get(i) or next(answers) for i in range(len(batch))]

    async def _send_now(self, batch: Sequence[Outgoing]) -> Sequence[str | Exception]:
        try:
            answer = await self._call(
                "send_message_batch",
                QueueUrl=self.url,
                Entries=[_entry(i, out) for i, out in enumerate(batch)],
            )
        except AwsError as fault:
            too_long = fault.code.endswith(_TOO_LONG)
            contents = too_long or fault.cause is Cause.INVALID  # of some entry; nothing was sent
            if contents and len(batch) > 1:
                half = len(batch) // 2
                first, second = batch[:half], batch[half:]
                return [*await self._send_departing(first), *await self._send_departing(second)]
            self._learn(contents)
            return [RefusedError(Cause.INVALID, str(fault), fault.code) if too_long else fault] * len(batch)
        answers: list[str | Exception] = answers_by_entry(
            answer, len(batch), lambda entry: str(entry.get("MessageId") or "")
        )
        # a queue that turns down messages for their contents works well
        self._learn(any(not isinstance(a, AwsError) or a.cause is Cause.INVALID for a in answers))
        return answers


def _size_of(out: Outgoing) -> int:
    """Bytes, never too few; exact where they could matter, since ten of less than this fit into a batch anyhow."""
    if len(out.body) < _SMALL and len(out.attributes) <= OURS and next(iter(out.attributes), "") in OURS_FIRST:
        return 4 * _SMALL + OURS_BYTES_MAX
    return size_of(out.body, out.attributes)


def _entry(index: int, out: Outgoing) -> dict[str, Any]:
    entry: dict[str, Any] = {"Id": str(index), "MessageBody": out.body}
    if out.attributes:
        entry["MessageAttributes"] = {
            name: {"DataType": kind, "BinaryValue" if isinstance(value, bytes) else "StringValue": value}
            for name, (kind, value) in out.attributes.items()
        }
    if out.group:
        entry["MessageGroupId"] = out.group
    if out.trace_header:
        entry["MessageSystemAttributes"] = {"AWSTraceHeader": {"DataType": "String", "StringValue": out.trace_header}}
    return entry
