"""The client's and the worker's code of docs/clients.md, taken from the page and run against an emulator."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest

from dispatcher.demo.cloud import Cloud
from dispatcher.demo.worker import InterruptedByStop, Job, ResultsTable, Worker

ROOT = Path(__file__).parents[2]
REGION = "us-west-2"
ONCE, SUBMIT, MAIN = re.findall(r"```python\n(.*?)```", (ROOT / "docs/clients.md").read_text(), re.DOTALL)


@dataclass
class Place:
    """What a worker works with, under names of its own."""

    sqs: Any
    dynamodb: Any
    queue_url: str
    dead_letters_url: str
    table: str
    topic: str
    told_url: str  # a queue that hears the topic

    def counts(self, url: str) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        return sum(
            int(n) for n in self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"].values()
        )

    def told(self) -> list[dict[str, str]]:
        """Take what clients were told."""
        heard = []
        while found := self.sqs.receive_message(QueueUrl=self.told_url, MaxNumberOfMessages=10).get("Messages"):
            for message in found:
                heard.append(json.loads(json.loads(message["Body"])["Message"]))
                self.sqs.delete_message(QueueUrl=self.told_url, ReceiptHandle=message["ReceiptHandle"])
        return heard

    def send(self, *request_ids: str) -> None:
        for request_id in request_ids:
            body = {"request_id": request_id, "callback_sns_topic": self.topic}
            self.sqs.send_message(QueueUrl=self.queue_url, MessageBody=json.dumps(body))


@pytest.fixture
def place(ministack: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name, value in ministack.environment.items():
        monkeypatch.setenv(name, value)
    name = f"w{uuid4().hex[:10]}"
    sqs, sns = boto3.client("sqs", region_name=REGION), boto3.client("sns", region_name=REGION)
    dynamodb = boto3.client("dynamodb", region_name="us-east-1")
    letters, told = (sqs.create_queue(QueueName=f"{name}-{what}")["QueueUrl"] for what in ("dlq", "told"))
    arns = {
        url: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        for url in (letters, told)
    }
    redrive = json.dumps({"deadLetterTargetArn": arns[letters], "maxReceiveCount": "3"})
    queue = sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": redrive})["QueueUrl"]
    topic = sns.create_topic(Name=name)["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arns[told])
    dynamodb.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "request_id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "request_id", "AttributeType": "S"}],
    )
    yield Place(sqs, dynamodb, queue, letters, name, topic, told)
    for client in (sqs, sns, dynamodb):
        client.close()


def until(condition: Callable[[], object], what: str, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"after {within:g} s still not: {what}"
        time.sleep(0.1)


def test_the_page_s_client_and_worker_serve_a_request_once_and_tell_the_client(place: Place, tmp_path: Path) -> None:
    names = {"TOPIC": place.topic, "MASTER_QUEUE_URL": place.queue_url, "QUEUE_URL": place.queue_url, "REGION": REGION}

    def with_names(code: str) -> str:
        for name, value in (names | {"RESULTS_TABLE": place.table}).items():
            code = re.sub(f'^{name} = ".*', f"{name} = {value!r}", code, flags=re.MULTILINE)
        return code

    submit, main = with_names(SUBMIT).replace('region_name="us-east-1"', f"region_name={REGION!r}"), with_names(MAIN)
    once = ONCE.replace('"inference-results"', repr(f"{place.table}-once"))
    made = subprocess.run([sys.executable, "-c", once], env=os.environ, capture_output=True, text=True, timeout=60)
    assert made.stdout.startswith("arn:aws:sns:"), made.stderr
    (tmp_path / "worker.py").write_text((ROOT / "dispatcher/demo/worker.py").read_text())
    (tmp_path / "submit.py").write_text(submit)
    (tmp_path / "main.py").write_text(main)
    for _ in range(2):  # the second is a copy: a worker cannot tell it from one that the dispatcher sent twice
        subprocess.run([sys.executable, "submit.py"], cwd=tmp_path, env=os.environ, check=True, timeout=60)
    worker = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, env=os.environ)
    try:
        until(lambda: place.counts(place.queue_url) == 0, "both are served")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(40) == 0
    finally:
        worker.kill()
    said = {"request_id": "order-4711", "result": "s3://inference-results/order-4711.json"}
    assert place.told() == [said, said]
    items = place.dynamodb.scan(TableName=place.table)["Items"]
    assert [item["request_id"]["S"] for item in items] == ["order-4711"]


class Serving:
    """Serves when told to, and remembers whom."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.served: list[str] = []

    def __call__(self, job: Job) -> str:
        self.served.append(job.request_id)
        while not self.may_end.wait(0.02):
            if job.stopping.is_set():
                raise InterruptedByStop
        return f"result of {job.request_id}"


def working(place: Place, serving: Callable[[Job], str], **how: Any) -> tuple[Worker, threading.Thread]:
    def tell(topic: str, request_id: str, result: str) -> None:
        told.append((topic, request_id, result))

    told: list[tuple[str, str, str]] = []
    results = ResultsTable(place.dynamodb, place.table)
    worker = Worker(place.sqs, place.queue_url, serving, results, tell, wait_s=1, **how)
    thread = threading.Thread(target=worker.run)
    thread.start()
    worker.told = told  # type: ignore[attr-defined]  # for the tests alone
    return worker, thread


def ended(worker: Worker, thread: threading.Thread) -> None:
    worker.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_a_request_that_takes_longer_than_its_visibility_stays_with_its_worker(place: Place) -> None:
    serving = Serving()
    place.send("long")
    one = working(place, serving, visibility_s=3)
    other = working(place, serving, visibility_s=3)
    try:
        until(lambda: serving.served, "it is being served")
        time.sleep(6)
        assert serving.served == ["long"]
        serving.may_end.set()
        until(lambda: place.counts(place.queue_url) == 0, "it is deleted")
    finally:
        ended(*one)
        ended(*other)
    assert serving.served == ["long"]


def test_workers_that_are_stopped_together_hand_back_and_spend_no_receive_in_a_circle(place: Place) -> None:
    serving = Serving()
    place.send(*(f"r-{n}" for n in range(8)))
    workers = [working(place, serving, gpus=2) for _ in range(6)]
    until(lambda: len(serving.served) == 8, "all are being served")
    for worker, _ in workers:
        worker.stop()
    for worker, thread in workers:
        ended(worker, thread)
    serving.may_end.set()
    late = working(place, serving, gpus=8)
    try:
        until(lambda: place.counts(place.queue_url) == 0, "another worker served them")
    finally:
        ended(*late)
    assert place.counts(place.dead_letters_url) == 0
    assert sorted(request_id for _, request_id, _ in late[0].told) == [f"r-{n}" for n in range(8)]  # type: ignore[attr-defined]  # as above


def test_a_worker_that_is_stopped_keeps_what_it_cannot_break_off_and_takes_nothing_more(place: Place) -> None:
    def uninterruptible(job: Job) -> str:
        begun.set()
        may_end.wait(60)
        return "done"

    begun, may_end = threading.Event(), threading.Event()
    place.send("one")
    worker, thread = working(place, uninterruptible, visibility_s=2)
    assert begun.wait(30)
    assert worker.stop() == 1
    place.send("two")
    serving = Serving()
    other = working(place, serving, visibility_s=30, gpus=2)
    try:
        until(lambda: "two" in serving.served, "the other worker has the next one")
        time.sleep(4)
        assert serving.served == ["two"], "what is still being served is extended, and nobody else gets it"
        may_end.set()
        serving.may_end.set()
        until(lambda: place.counts(place.queue_url) == 0, "both are deleted")
    finally:
        may_end.set()
        ended(worker, thread)
        ended(*other)


def test_a_message_that_comes_with_the_last_poll_is_handed_back_unserved(place: Place) -> None:
    serving = Serving()
    worker, thread = working(place, serving)
    received = place.sqs.receive_message

    def late(**how: Any) -> Any:
        worker.stop()
        place.send("late")
        return received(**how)

    worker._sqs = Replaced(place.sqs, receive_message=late)
    thread.join(60)
    assert serving.served == []
    last = working(place, serving)
    serving.may_end.set()
    try:
        until(lambda: serving.served == ["late"], "another worker has it")
    finally:
        ended(*last)


class Replaced:
    """A client with another method in place of one of its own."""

    def __init__(self, client: Any, **methods: Any) -> None:
        self._client = client
        self.__dict__ |= methods

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_what_fails_comes_back_and_ends_in_the_regions_dead_letter_queue(place: Place) -> None:
    def failing(job: Job) -> str:
        tried.append(job.request_id)
        raise RuntimeError("no such model")

    tried: list[str] = []
    place.send("bad")
    place.sqs.send_message(QueueUrl=place.queue_url, MessageBody="no JSON")
    worker = working(place, failing, visibility_s=1)
    try:
        until(lambda: place.counts(place.dead_letters_url) == 2, "both are dead letters")
    finally:
        ended(*worker)
    assert tried == ["bad"] * 3


def test_of_two_workers_that_serve_copies_at_once_the_first_result_counts(place: Place) -> None:
    results = ResultsTable(place.dynamodb, place.table)
    job = Job({"request_id": "twice"}, "m", threading.Event())
    assert results.find(job) is None
    assert results.keep(job, "one") == "one"
    assert results.keep(job, "other") == "one"
    assert results.find(job) == "one"
