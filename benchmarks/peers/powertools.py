"""Powertools for AWS Lambda outside Lambda, 16 threads: each receives ten and gives them as an event to its batch
processor, whose handler is idempotent by the request's id and sends; what failed, as its twin is
in progress, comes again after a second; the rest is deleted."""

import json
import os
from itertools import cycle
from threading import Lock, Thread
from typing import Any

import boto3
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, idempotent_function
from botocore.config import Config

THREADS = 16
VISIBILITY_S, AGAIN_S = 30, 1
CONFIG = Config(max_pool_connections=THREADS)
MASTER, TABLE = os.environ["MASTER_QUEUE_URL"], os.environ["LEDGER_TABLE"]
REGIONS: dict[str, str] = json.loads(os.environ["REGIONS"])


class Context:
    """What there is of a Lambda context: without it, a record that was begun and never finished bars its repeats."""

    def get_remaining_time_in_millis(self) -> int:
        return VISIBILITY_S * 1000


sqs = boto3.client("sqs", config=CONFIG)
senders = {region: boto3.client("sqs", region_name=region, config=CONFIG) for region in REGIONS}
turns, turn = cycle(REGIONS), Lock()
table = DynamoDBPersistenceLayer(table_name=TABLE, key_attr="request_id", boto_config=CONFIG)
config = IdempotencyConfig(event_key_jmespath="request_id", lambda_context=Context())


@idempotent_function(data_keyword_argument="request", persistence_store=table, config=config)
def send(request: dict[str, Any], body: str) -> None:
    with turn:
        region = next(turns)
    senders[region].send_message(QueueUrl=REGIONS[region], MessageBody=body)


def handle(record: SQSRecord) -> None:
    send(request=record.json_body, body=record.body)


def work() -> None:
    processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)
    while True:
        answer = sqs.receive_message(
            QueueUrl=MASTER, MaxNumberOfMessages=10, WaitTimeSeconds=20, VisibilityTimeout=VISIBILITY_S
        )
        receipts = {message["MessageId"]: message["ReceiptHandle"] for message in answer.get("Messages", [])}
        if not receipts:
            continue
        records = [
            {"messageId": m["MessageId"], "receiptHandle": m["ReceiptHandle"], "body": m["Body"]}
            for m in answer["Messages"]
        ]
        said = process_partial_response({"Records": records}, record_handler=handle, processor=processor)
        again = [receipts.pop(failure["itemIdentifier"]) for failure in said["batchItemFailures"]]
        if again:
            sqs.change_message_visibility_batch(
                QueueUrl=MASTER,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": receipt, "VisibilityTimeout": AGAIN_S}
                    for number, receipt in enumerate(again)
                ],
            )
        done = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(receipts.values())]
        if done:
            sqs.delete_message_batch(QueueUrl=MASTER, Entries=done)


threads = [Thread(target=work) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
