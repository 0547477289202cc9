"""aiobotocore, eight polls: PutItem for each message of a poll side by side, one send for each Region, one delete."""

import asyncio
import json
import os
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

POLLS = 8
CONFIG = AioConfig(max_pool_connections=100)
MASTER, TABLE = os.environ["MASTER_QUEUE_URL"], os.environ["LEDGER_TABLE"]
REGIONS: dict[str, str] = json.loads(os.environ["REGIONS"])


async def main() -> None:
    session, turns = get_session(), cycle(REGIONS)
    async with AsyncExitStack() as stack:

        async def client(service: str, region: str) -> Any:
            return await stack.enter_async_context(session.create_client(service, region_name=region, config=CONFIG))

        sqs = await client("sqs", os.environ["AWS_REGION"])
        table = await client("dynamodb", os.environ["AWS_REGION"])
        senders = {region: await client("sqs", region) for region in REGIONS}

        async def claimed(request_id: str) -> bool:
            item = {"request_id": {"S": request_id}}
            try:
                await table.put_item(TableName=TABLE, Item=item, ConditionExpression="attribute_not_exists(request_id)")
            except ClientError as refusal:
                if refusal.response["Error"]["Code"] != "ConditionalCheckFailedException":
                    raise
                return False
            return True

        async def send(region: str, bodies: list[str]) -> None:
            entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(bodies)]
            await senders[region].send_message_batch(QueueUrl=REGIONS[region], Entries=entries)

        async def poll() -> None:
            while True:
                answer = await sqs.receive_message(QueueUrl=MASTER, MaxNumberOfMessages=10, WaitTimeSeconds=20)
                messages = answer.get("Messages", [])
                ours = await asyncio.gather(
                    *(claimed(json.loads(message["Body"])["request_id"]) for message in messages)
                )
                chosen: dict[str, list[str]] = {}
                for message, is_ours in zip(messages, ours, strict=True):
                    if is_ours:
                        chosen.setdefault(next(turns), []).append(message["Body"])
                await asyncio.gather(*(send(*one) for one in chosen.items()))
                if messages:
                    done = [
                        {"Id": str(number), "ReceiptHandle": m["ReceiptHandle"]} for number, m in enumerate(messages)
                    ]
                    await sqs.delete_message_batch(QueueUrl=MASTER, Entries=done)

        await asyncio.gather(*(poll() for _ in range(POLLS)))


asyncio.run(main())
