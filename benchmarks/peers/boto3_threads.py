"""boto3 and 32 threads, as most consumers are written: receive ten, PutItem for each of them,
then one send for each Region and one delete."""

import json
import os
from itertools import cycle
from threading import Lock, Thread

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

THREADS = 32
CONFIG = Config(max_pool_connections=THREADS)
MASTER, TABLE = os.environ["MASTER_QUEUE_URL"], os.environ["LEDGER_TABLE"]
REGIONS: dict[str, str] = json.loads(os.environ["REGIONS"])

sqs = boto3.client("sqs", config=CONFIG)
table = boto3.client("dynamodb", config=CONFIG)
senders = {region: boto3.client("sqs", region_name=region, config=CONFIG) for region in REGIONS}
turns, turn = cycle(REGIONS), Lock()


def claimed(request_id: str) -> bool:
    item = {"request_id": {"S": request_id}}
    try:
        table.put_item(TableName=TABLE, Item=item, ConditionExpression="attribute_not_exists(request_id)")
    except ClientError as refusal:
        if refusal.response["Error"]["Code"] != "ConditionalCheckFailedException":
            raise
        return False
    return True


def work() -> None:
    while True:
        answer = sqs.receive_message(QueueUrl=MASTER, MaxNumberOfMessages=10, WaitTimeSeconds=20)
        messages = answer.get("Messages", [])
        chosen: dict[str, list[str]] = {}
        for message in messages:
            if claimed(json.loads(message["Body"])["request_id"]):
                with turn:
                    chosen.setdefault(next(turns), []).append(message["Body"])
        for region, bodies in chosen.items():
            entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(bodies)]
            senders[region].send_message_batch(QueueUrl=REGIONS[region], Entries=entries)
        if messages:
            done = [{"Id": str(number), "ReceiptHandle": m["ReceiptHandle"]} for number, m in enumerate(messages)]
            sqs.delete_message_batch(QueueUrl=MASTER, Entries=done)


threads = [Thread(target=work) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
