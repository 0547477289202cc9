"""Simulated Spot GPUs: machines, each of which runs the example worker (`worker.py`) as it stands."""

import asyncio
from collections.abc import Callable
from random import Random
from threading import Thread
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from dispatcher.demo.worker import InterruptedByStop, Job, Results, Worker
from dispatcher.model import Region

GPUS_EACH = 4  # GPUs of one machine
VISIBILITY_S = 60
WAIT_S = 1  # so that a machine that is taken back has left within a second
TOPIC = "inference-results"


class Gpus:
    """One Region's machines. Use as a context, and `add` some inside; leaving it stops them all."""

    def __init__(
        self,
        region: Region,
        queue_url: str,
        service_s: float,
        random: Random,
        results: Results,
        notify: Callable[[str, str, str], None],
        *,
        each: int = GPUS_EACH,
    ) -> None:
        self.region = region
        self._queue_url = queue_url
        self._service_s = service_s
        self._random = random
        self._results = results
        self._notify = notify
        self._each = each
        self._sqs = boto3.client("sqs", region_name=region, config=Config(max_pool_connections=100))
        self._working: list[Worker] = []
        self._threads: list[Thread] = []

    async def __aenter__(self) -> "Gpus":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.interrupt(0)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def __len__(self) -> int:
        return sum(worker.gpus for worker in self._working)

    def add(self, gpus: int) -> None:
        """Start so many more: whole machines."""
        for _ in range(gpus // self._each):
            worker = Worker(
                self._sqs,
                self._queue_url,
                self._serve,
                self._results,
                self._notify,
                gpus=self._each,
                visibility_s=VISIBILITY_S,
                wait_s=WAIT_S,
            )
            self._working.append(worker)
            self._threads.append(Thread(target=worker.run, name=f"worker {self.region}"))
            self._threads[-1].start()

    def interrupt(self, left: int) -> int:
        """Spot takes machines back until `left` GPUs are there; return how many requests they hand back."""
        gone = self._working[left // self._each :]
        del self._working[left // self._each :]
        return sum(worker.stop() for worker in gone)

    def _serve(self, job: Job) -> str:
        if job.stopping.wait(self._service_s * self._random.uniform(0.7, 1.3)):
            raise InterruptedByStop
        return f"s3://inference-results/{job.request_id}.json"


class NoTopicError(Exception):
    """Clients cannot be told of their results; the message says why."""


def make_topic(home: Region) -> str:
    """Make the topic that clients are told by, on an emulator, or find it; return its ARN. Raises NoTopicError."""
    try:
        made: Any = boto3.client("sns", region_name=home).create_topic(Name=TOPIC)
    except (BotoCoreError, ClientError) as fault:
        raise NoTopicError(f"no topic could be made: {fault}") from fault
    return str(made["TopicArn"])
