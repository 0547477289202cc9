"""The benchmark's fake is honest: it keeps what it was given, it counts, and boto3 is content with it."""

import hashlib
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from benchmarks.fake import md5_of_attributes
from benchmarks.rig import BenchError, Contender, Fake, Load, fake_aws, measure


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with fake_aws(3, "0,0,0", 0.0) as fake:
        yield fake


def client(fake: Fake, service: Any, region: str = "us-east-1") -> Any:
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    return boto3.client(service, endpoint_url=fake.url, region_name=region, **keys)


def receive(fake: Fake, count: int = 10, **more: Any) -> list[dict[str, Any]]:
    answer = client(fake, "sqs").receive_message(
        QueueUrl=fake.queue_url("master"), MaxNumberOfMessages=count, MessageAttributeNames=["All"], **more
    )
    return list(answer.get("Messages", []))


def test_what_is_received_is_hidden_and_comes_back_until_it_is_deleted(fake: Fake) -> None:
    fake.tell(reset=True, count=3)
    first = receive(fake, VisibilityTimeout=1)
    assert len(first) == 3
    assert not receive(fake)
    time.sleep(1.2)
    again = receive(fake, VisibilityTimeout=30)
    assert {m["MessageId"] for m in again} == {m["MessageId"] for m in first}
    assert all(message["Attributes"]["ApproximateReceiveCount"] == "2" for message in again)
    entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(again)]
    stale = [{"Id": "stale", "ReceiptHandle": first[0]["ReceiptHandle"]}]
    answer = client(fake, "sqs").delete_message_batch(QueueUrl=fake.queue_url("master"), Entries=stale + entries)
    assert [entry["Id"] for entry in answer["Failed"]] == ["stale"]
    assert len(answer["Successful"]) == 3
    assert fake.tell()["left"] == 0


def test_a_regional_queue_counts_what_arrives_once_and_what_does_not(fake: Fake) -> None:
    fake.tell(reset=True, count=4, twice=0.5)
    bodies = sorted({message["Body"] for message in receive(fake)})
    assert len(bodies) == 2, "half of the messages repeat the other half"
    url = fake.queue_url("work-us-west-2")
    entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate([bodies[0], bodies[0]])]
    client(fake, "sqs", "us-west-2").send_message_batch(QueueUrl=url, Entries=entries)
    said = fake.result()
    assert (said["requests"], said["missing"], said["copies"], said["unknown"]) == (2, 1, 1, 0)
    assert said["calls"]["send_message_batch"] == 1
    assert len(said["took_s"]["us-west-2"]) == 1


def test_digests_dates_and_checksums_are_right(fake: Fake) -> None:
    """The JavaScript SDK refuses a wrong digest, and puts its clock right by the date."""
    attributes = {"Color": {"DataType": "String", "StringValue": "Blue"}}
    answer = client(fake, "sqs").send_message(
        QueueUrl=fake.queue_url("master"), MessageBody="žluťoučký", MessageAttributes=attributes
    )
    assert answer["MD5OfMessageBody"] == hashlib.md5("žluťoučký".encode()).hexdigest()
    assert answer["MD5OfMessageAttributes"] == md5_of_attributes(attributes)
    date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
    assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 5
    (message,) = receive(fake, VisibilityTimeout=0)
    assert message["Body"] == "žluťoučký"
    assert message["MD5OfBody"] == answer["MD5OfMessageBody"]
    assert message["MessageAttributes"]["Color"]["StringValue"] == "Blue"


def test_conditions_hold_and_a_batch_s_statements_are_answered_one_by_one(fake: Fake) -> None:
    table = client(fake, "dynamodb")
    put = {"TableName": "ledger", "Item": {"request_id": {"S": "one"}}}
    table.put_item(**put, ConditionExpression="attribute_not_exists(request_id)")
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        table.put_item(**put, ConditionExpression="attribute_not_exists(request_id)")
    text = "INSERT INTO \"ledger\" VALUE {'request_id': ?}"
    statements = [{"Statement": text, "Parameters": [{"S": key}]} for key in ("one", "two")]
    first, second = table.batch_execute_statement(Statements=statements)["Responses"]
    assert first["Error"]["Code"] == "DuplicateItem"
    assert "Error" not in second


def test_a_long_poll_is_answered_by_the_first_message(fake: Fake) -> None:
    fake.tell(reset=True, count=1, per_second=2)  # in half a second
    started = time.monotonic()
    assert len(receive(fake, WaitTimeSeconds=20)) == 1
    assert time.monotonic() - started < 15, "not at the end of the poll"


def test_a_contender_that_loses_or_repeats_is_no_result(tmp_path: Any) -> None:
    """It deletes whatever it receives, and sends nothing on."""
    driver = tmp_path / "loses.py"
    driver.write_text(
        "import boto3, os\n"
        "sqs, url = boto3.client('sqs'), os.environ['MASTER_QUEUE_URL']\n"
        "while True:\n"
        "    for m in sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20).get('Messages', []):\n"
        "        sqs.delete_message(QueueUrl=url, ReceiptHandle=m['ReceiptHandle'])\n"
    )
    with pytest.raises(BenchError, match="did not move each request once"):
        measure(Contender("loses", [sys.executable, str(driver)], 10), Load(10))


def test_an_unknown_call_is_refused_loudly(fake: Fake) -> None:
    with pytest.raises(ClientError, match="InvalidAction"):
        client(fake, "sqs").list_queue_tags(QueueUrl=fake.queue_url("master"))
