"""Whatever AWS answers: every call ends with its own result or with a fault that has a name, and nothing is taken for
done that the answer does not say was done.

The answers are those that the SDK could hand on: of the right shape, with anything in it missing, null, or unknown.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.aws.fleet import FleetItem
from dispatcher.aws.ledger import Ledger
from dispatcher.aws.master import MasterQueue
from dispatcher.aws.queues import read_depth, redrive_target
from dispatcher.aws.regional import SendingQueue
from dispatcher.clock import Clock
from dispatcher.errors import AwsError, DispatcherError
from dispatcher.model import Choice, Claimed, ClaimRequest, Delivery, Message, Outgoing, Priority, Region
from dispatcher.telemetry.metrics import Metrics
from tests.virtual_time import run_virtual

TEXT = (
    st.none() | st.text(max_size=4) | st.sampled_from(["0", "1", "2", "9", "-1", "InternalError", "DuplicateItem", "٣"])
)


def some(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A structure that may lack any of its members."""
    return st.fixed_dictionaries({}, optional=fields)


def many(one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | st.lists(st.none() | one, max_size=5)


ENTRY = some(Id=TEXT, Code=TEXT, Message=TEXT, MessageId=TEXT, SenderFault=st.none() | st.booleans())
BATCH = some(Successful=many(ENTRY), Failed=many(ENTRY), ResponseMetadata=st.none() | some(HTTPHeaders=st.none()))
VALUE = st.none() | some(S=TEXT, N=st.none() | st.sampled_from(["0", "1.5", "1e3"]))
ITEM = st.none() | st.dictionaries(
    st.sampled_from(["request_id", "state", "owner", "lease_end", "region", "work", "generation", "expires_at"]), VALUE
)
STATEMENTS = some(Responses=many(some(Error=st.none() | some(Code=TEXT, Message=TEXT), TableName=TEXT)))
READ = some(Responses=st.none() | some(ledger=many(ITEM)), Item=ITEM, Attributes=ITEM)
MESSAGE = some(
    MessageId=TEXT,
    ReceiptHandle=TEXT,
    Body=TEXT,
    MessageAttributes=st.none() | some(a=st.none() | some(StringValue=TEXT)),
    Attributes=st.none() | some(SentTimestamp=TEXT, ApproximateReceiveCount=TEXT),
)
COUNTS = some(Attributes=st.none() | some(ApproximateNumberOfMessages=TEXT, QueueArn=TEXT, RedrivePolicy=TEXT))


class Answering:
    """A client that always gives the same answer."""

    def __init__(self, *answers: Mapping[str, Any]) -> None:
        self._answers = list(answers)

    def prepare(self, *operations: str) -> None: ...

    async def __call__(self, operation: str, **_: Any) -> Mapping[str, Any]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def said(answer: Mapping[str, Any], name: str) -> set[str]:
    return {entry.get("Id") for entry in answer.get(name) or [] if entry}


@given(BATCH)
def test_a_send_is_accepted_only_if_the_answer_says_so(answer: dict[str, Any]) -> None:
    async def main() -> list[Any]:
        async with SendingQueue("url", Answering(answer)) as queue:  # type: ignore[arg-type]  # a Caller in all that is used
            sends = (queue.send(Outgoing(f"{n}", {}, None)) for n in range(3))
            return await asyncio.gather(*sends, return_exceptions=True)

    for number, end in enumerate(run_virtual(main())):
        assert isinstance(end, str | AwsError), repr(end)
        if isinstance(end, str):
            assert str(number) in said(answer, "Successful")


@given(BATCH)
def test_a_delete_or_an_extension_is_done_only_if_the_answer_says_so(answer: dict[str, Any]) -> None:
    async def main() -> list[Any]:
        call: Any = Answering(answer)
        async with MasterQueue("url", call, call, wait_s=0, visibility_s=9) as queue:
            deliveries = [Delivery(f"{n}", f"{n}", "", {}, None, 0.0, 1) for n in range(3)]
            deletes = [queue.acknowledge(delivery) for delivery in deliveries]
            changes = [queue.keep_invisible(delivery, 5) for delivery in deliveries]
            return await asyncio.gather(*deletes, *changes, return_exceptions=True)

    for number, end in enumerate(run_virtual(main())):
        assert end is None or isinstance(end, AwsError), repr(end)
        if end is None:
            assert str(number % 3) in said(answer, "Successful")


@given(some(Messages=many(MESSAGE)))
def test_a_receive_gives_what_can_be_read_and_leaves_the_rest_to_come_back(answer: dict[str, Any]) -> None:
    async def main() -> list[Delivery]:
        call: Any = Answering(answer)
        return await MasterQueue("url", call, call, wait_s=0, visibility_s=9).receive(10)

    for delivery in run_virtual(main()):
        assert delivery.receipt_handle
        bodies = [message["Body"] for message in answer["Messages"] if message and message.get("Body") is not None]
        assert delivery.body in bodies, "what is missing is not empty: it would be rejected, and lost"


def _claims(ledger: Ledger, count: int) -> list[Any]:
    choice = Choice(Region("r"), "p", 0.0)
    return [
        ledger.claim(ClaimRequest(Message(f"{n}", "m", Priority.NORMAL, "w", 0), f"t{n}", choice, 1e10, "m"))
        for n in range(count)
    ]


@given(STATEMENTS, READ)
def test_a_claim_is_ours_only_if_the_answer_says_so(answer: dict[str, Any], read: dict[str, Any]) -> None:
    async def main() -> list[Any]:
        call: Any = Answering(answer, read)
        metrics = Metrics.unread()
        async with Ledger("ledger", call, clock=Clock(), metrics=metrics, retention_s=9, batching=True) as ledger:
            return await asyncio.gather(*_claims(ledger, 3), return_exceptions=True)

    responses = answer.get("Responses") or []
    for number, end in enumerate(run_virtual(main())):
        assert not isinstance(end, Exception) or isinstance(end, DispatcherError), repr(end)
        if isinstance(end, Claimed) and end.token == f"t{number}" and end.lease_end == 1e10:
            assert len(responses) == 3
            assert not (responses[number] or {}).get("Error")


@given(STATEMENTS)
def test_a_confirmation_is_written_only_if_the_answer_says_so(answer: dict[str, Any]) -> None:
    async def main() -> list[Any]:
        call: Any = Answering(answer)
        metrics = Metrics.unread()
        async with Ledger("ledger", call, clock=Clock(), metrics=metrics, retention_s=9, batching=True) as ledger:
            claims = [Claimed(f"{n}", "t", Region("r"), 1e10) for n in range(3)]
            return await asyncio.gather(*(ledger.confirm(claim, "id") for claim in claims), return_exceptions=True)

    responses = answer.get("Responses") or []
    for number, end in enumerate(run_virtual(main())):
        assert end is None or isinstance(end, DispatcherError), repr(end)
        if end is None:
            assert len(responses) == 3
            assert not (responses[number] or {}).get("Error")


@given(COUNTS, some(QueueUrl=TEXT))
def test_a_depth_is_a_count_and_a_dead_letter_queue_has_a_url_or_it_is_a_fault(
    answer: dict[str, Any], url: dict[str, Any]
) -> None:
    async def main() -> None:
        call: Any = Answering(answer)
        try:
            depth = await read_depth(call, "url")
            assert depth.visible == int((answer["Attributes"])["ApproximateNumberOfMessages"])
        except AwsError:
            pass
        try:
            found = await redrive_target(Answering(answer, url), "url")  # type: ignore[arg-type]  # a Caller in all that is used
            assert found is None or found == url["QueueUrl"]
        except AwsError:
            pass

    run_virtual(main())


@given(some(Attributes=st.none() | st.dictionaries(TEXT.filter(bool), VALUE | some(M=st.none() | some(report=VALUE)))))
def test_another_dispatcher_s_report_that_cannot_be_read_is_left_out(answer: dict[str, Any]) -> None:
    async def main() -> None:
        item = FleetItem("ledger", Answering(answer), Clock())  # type: ignore[arg-type]  # a Caller in all that is used
        assert item._read(answer.get("Attributes") or {}) == {}

    run_virtual(main())
