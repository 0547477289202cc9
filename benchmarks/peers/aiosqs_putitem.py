"""aiosqs, eight polls: PutItem by aiobotocore, send and delete, for each message of a poll side by side, as aiosqs has
no batches."""

import asyncio
import json
import os
from contextlib import AsyncExitStack
from itertools import cycle

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiosqs import SQSClient
from botocore.exceptions import ClientError

POLLS = 8
MASTER, TABLE, HOME = os.environ["MASTER_QUEUE_URL"], os.environ["LEDGER_TABLE"], os.environ["AWS_REGION"]
REGIONS: dict[str, str] = json.loads(os.environ["REGIONS"])
ENDPOINT = os.environ["AWS_ENDPOINT_URL"]


def client(region: str) -> SQSClient:
    made = SQSClient(
        region_name=region,
        aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=os.environ["AWS_SESSION_TOKEN"],
        host=ENDPOINT.partition("://")[2],
        timeout_sec=30,
    )
    made.endpoint_url = ENDPOINT  # it knows HTTPS only
    return made


async def main() -> None:
    turns, config = cycle(REGIONS), AioConfig(max_pool_connections=100)
    async with AsyncExitStack() as stack:
        table = await stack.enter_async_context(
            get_session().create_client("dynamodb", region_name=HOME, config=config)
        )
        sqs = await stack.enter_async_context(client(HOME))
        senders = {region: await stack.enter_async_context(client(region)) for region in REGIONS}

        async def claimed(request_id: str) -> bool:
            item = {"request_id": {"S": request_id}}
            try:
                await table.put_item(TableName=TABLE, Item=item, ConditionExpression="attribute_not_exists(request_id)")
            except ClientError as refusal:
                if refusal.response["Error"]["Code"] != "ConditionalCheckFailedException":
                    raise
                return False
            return True

        async def move(body: str, receipt: str) -> None:
            if await claimed(json.loads(body)["request_id"]):
                region = next(turns)
                await senders[region].send_message(queue_url=REGIONS[region], message_body=body)
            await sqs.delete_message(queue_url=MASTER, receipt_handle=receipt)

        async def poll() -> None:
            while True:
                messages = await sqs.receive_message(
                    queue_url=MASTER, max_number_of_messages=10, visibility_timeout=600, wait_time_seconds=20
                )
                await asyncio.gather(*(move(m["Body"], m["ReceiptHandle"]) for m in messages or ()))

        await asyncio.gather(*(poll() for _ in range(POLLS)))


asyncio.run(main())
