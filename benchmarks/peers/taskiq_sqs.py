"""taskiq and taskiq-aio-sqs: a broker on the master queue, whose task claims a request by aiobotocore's PutItem and
kicks it to the broker of a Region.

taskiq reads only messages that taskiq has written; `Bodies`, a formatter, makes one of each body and a body of it.
Sends are single: a broker that batches says "sent" before it has sent, and the delete would come first. The task
acknowledges, because taskiq by itself would delete the messages of tasks that failed."""

import asyncio
import json
import os
from itertools import cycle
from typing import Annotated

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError
from taskiq import Context, TaskiqDepends
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq_aio_sqs import SQSBroker

MASTER, TABLE, HOME = os.environ["MASTER_QUEUE_URL"], os.environ["LEDGER_TABLE"], os.environ["AWS_REGION"]
REGIONS: dict[str, str] = json.loads(os.environ["REGIONS"])


class Bodies(TaskiqFormatter):
    def loads(self, message: bytes) -> TaskiqMessage:
        body = message.decode()
        request_id = json.loads(body)["request_id"]
        return TaskiqMessage(task_id=request_id, task_name="move", labels={}, args=[request_id, body], kwargs={})

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=message.args[1].encode(),
            labels=message.labels,
        )


def broker(url: str, region: str) -> SQSBroker:
    name = url.rpartition("/")[2]
    return SQSBroker(name, region_name=region, max_number_of_messages=10, wait_time_seconds=20).with_formatter(Bodies())


master = broker(MASTER, HOME)
regional = {region: broker(url, region) for region, url in REGIONS.items()}
turns = cycle(REGIONS)


async def main() -> None:
    config = AioConfig(max_pool_connections=100)
    async with get_session().create_client("dynamodb", region_name=HOME, config=config) as table:

        async def claimed(request_id: str) -> bool:
            item = {"request_id": {"S": request_id}}
            try:
                await table.put_item(TableName=TABLE, Item=item, ConditionExpression="attribute_not_exists(request_id)")
            except ClientError as refusal:
                if refusal.response["Error"]["Code"] != "ConditionalCheckFailedException":
                    raise
                return False
            return True

        @master.task("move")
        async def move(request_id: str, body: str, context: Annotated[Context, TaskiqDepends()]) -> None:
            if await claimed(request_id):
                await move.kicker().with_broker(regional[next(turns)]).kiq(request_id, body)
            await context.ack()

        for one in (master, *regional.values()):
            await one.startup()
        await run_receiver_task(master, ack_time=AcknowledgeType.MANUAL)


asyncio.run(main())
