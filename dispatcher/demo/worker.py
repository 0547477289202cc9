"""A worker as a user would write it: takes requests off one Region's queue, serves each once, tells the client.

Made to be copied: it needs boto3 and nothing of the dispatcher. The demo and `dispatcher dev workers` run exactly this.
A message may arrive twice (SQS, and the windows of docs/guarantees.md), so results are found by the body's
`request_id`, and what was served before is only told again.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import boto3
from botocore.exceptions import BotoCoreError, ClientError

log = logging.getLogger("worker")


class InterruptedByStop(Exception):  # noqa: N818  it is no error
    """Raised by `serve` once `job.stopping` is set: the request goes back to its queue at once."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request in hand. `stopping` is set when its result will not be wanted from here any more."""

    request: Mapping[str, Any]
    message_id: str
    stopping: threading.Event

    @property
    def request_id(self) -> str:
        return str(self.request["request_id"])


class Results(Protocol):
    """What was served, ever, by whichever worker."""

    def find(self, job: Job) -> str | None:
        """Return the result of the job's request if it was served before."""

    def keep(self, job: Job, result: str) -> str:
        """Remember a result; return the one that counts, which is the first."""


class Worker:
    """Serves up to `gpus` requests at once until it is stopped.

    `serve` returns the result of a job, such as where it was put. `notify` is called with the topic of a request that
    names one, its id and the result; it may be called again for the same request. What raises comes back after
    `visibility_s`, and ends in the Region's dead-letter queue when it has come too often.
    """

    def __init__(
        self,
        sqs: Any,
        queue_url: str,
        serve: Callable[[Job], str],
        results: Results,
        notify: Callable[[str, str, str], None],
        *,
        gpus: int = 1,
        visibility_s: int = 60,
        wait_s: int = 20,
    ) -> None:
        self.gpus = gpus
        self._sqs = sqs
        self._queue_url = queue_url
        self._serve = serve
        self._results = results
        self._notify = notify
        self._visibility_s = visibility_s
        self._wait_s = wait_s
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._in_hand: dict[str, None] = {}  # receipt handles

    def stop(self) -> int:
        """Take nothing more, and hand back what is in hand; return how many that is. For SIGTERM and Spot's notice."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
            return len(self._in_hand)

    def run(self) -> None:
        """Work until stopped."""
        with ThreadPoolExecutor(self.gpus + 1, "worker") as pool:
            pool.submit(self._keep_invisible)
            try:
                while room := self._room():
                    for message in self._receive(min(room, 10)):
                        with self._changed:
                            self._in_hand[message["ReceiptHandle"]] = None
                        pool.submit(self._carry, message)
            finally:  # before the pool is waited for: an interrupt from the keyboard must reach its jobs
                self.stop()

    def _room(self) -> int:
        """Return for how many more requests there is a GPU, as soon as there is one; 0 once stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping.is_set() or len(self._in_hand) < self.gpus)
            return 0 if self._stopping.is_set() else self.gpus - len(self._in_hand)

    def _receive(self, most: int) -> list[Mapping[str, Any]]:
        try:
            answer = self._sqs.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=most,
                WaitTimeSeconds=self._wait_s,
                VisibilityTimeout=self._visibility_s,
            )
        except (BotoCoreError, ClientError) as fault:
            log.warning("no messages: %s", fault)
            self._stopping.wait(1.0)
            return []
        received: list[Mapping[str, Any]] = answer.get("Messages", [])
        return received

    def _carry(self, message: Mapping[str, Any]) -> None:
        handle = message["ReceiptHandle"]
        try:
            if self._stopping.is_set():
                raise InterruptedByStop
            job = Job(json.loads(message["Body"]), message["MessageId"], self._stopping)
            try:
                self._finish(job, handle)
            except (BotoCoreError, ClientError) as fault:
                topic = job.request.get("callback_sns_topic")
                log.warning("request %s comes again; its topic is %s: %s", job.request_id, topic, fault)
        except InterruptedByStop:
            self._let_go(handle)
            self._hand_back(handle)
        except Exception:
            log.exception("message %s was not served", message["MessageId"])
        finally:
            self._let_go(handle)

    def _finish(self, job: Job, handle: str) -> None:
        result = self._results.find(job)
        if result is None:
            result = self._results.keep(job, self._serve(job))
        if topic := job.request.get("callback_sns_topic"):
            self._notify(topic, job.request_id, result)
        self._sqs.delete_message(QueueUrl=self._queue_url, ReceiptHandle=handle)  # last: until now it may come again

    def _let_go(self, handle: str) -> None:
        with self._changed:
            self._in_hand.pop(handle, None)
            self._changed.notify_all()

    def _hand_back(self, handle: str) -> None:
        """Let others have it once every poll that is open now has ended.

        When several workers stop at once, one's open poll would get what another hands back: each such turn costs the
        message one of its few receives.
        """
        later = self._wait_s + 1
        try:
            self._sqs.change_message_visibility(QueueUrl=self._queue_url, ReceiptHandle=handle, VisibilityTimeout=later)
        except (BotoCoreError, ClientError) as fault:
            log.warning("not handed back: %s", fault)  # it comes back when its visibility ends

    def _keep_invisible(self) -> None:
        """A request may take longer than the visibility timeout: it is extended three times within it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping.is_set() and not self._in_hand, self._visibility_s / 3)
                handles = list(self._in_hand)
                if self._stopping.is_set() and not handles:
                    return
            for start in range(0, len(handles), 10):
                entries = [
                    {"Id": str(n), "ReceiptHandle": handle, "VisibilityTimeout": self._visibility_s}
                    for n, handle in enumerate(handles[start : start + 10])
                ]
                try:
                    answer = self._sqs.change_message_visibility_batch(QueueUrl=self._queue_url, Entries=entries)
                    if failed := answer.get("Failed"):
                        log.warning("not extended: %s", failed)
                except Exception:  # whatever it is, there are two more tries
                    log.exception("not extended")


class ResultsTable:
    """Results in a DynamoDB table with the string key `request_id`, one for all Regions' workers."""

    def __init__(self, dynamodb: Any, table: str) -> None:
        dynamodb.describe_table(TableName=table)  # if it is not there, that is told now and not at the first request
        self._dynamodb = dynamodb
        self._table = table

    def find(self, job: Job) -> str | None:
        key = {"request_id": {"S": job.request_id}}
        answer = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        return str(answer["Item"]["result"]["S"]) if "Item" in answer else None

    def keep(self, job: Job, result: str) -> str:
        item = {"request_id": {"S": job.request_id}, "result": {"S": result}}
        try:
            self._dynamodb.put_item(
                TableName=self._table, Item=item, ConditionExpression="attribute_not_exists(request_id)"
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            return self.find(job) or result  # another worker had a copy, and was quicker
        return result


class Callbacks:
    """Publishes `{"request_id": …, "result": …}` to a request's topic, in the topic's own Region."""

    def __init__(self) -> None:
        self._clients: dict[str, Any] = {}
        self._making = threading.Lock()  # clients are safe to share between threads; making them is not

    def __call__(self, topic: str, request_id: str, result: str) -> None:
        region = topic.split(":")[3]
        with self._making:
            if region not in self._clients:
                self._clients[region] = boto3.client("sns", region_name=region)
        message = json.dumps({"request_id": request_id, "result": result})
        self._clients[region].publish(TopicArn=topic, Message=message)
