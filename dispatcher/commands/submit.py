"""Validates requests and sends them to the master queue; what a journal says was sent is not sent again."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import SystemRandom

from dispatcher.aws.clients import Clients
from dispatcher.aws.regional import SendingQueue
from dispatcher.errors import AwsError, ConfigurationError, LeaseTooShortError, PoisonError
from dispatcher.model import Attribute, Outgoing, Region
from dispatcher.policy.decode import GENERATION, decode
from dispatcher.policy.envelope import BYTES_MAX
from dispatcher.settings import Settings

POOL = 10
ATTEMPTS = 3
IN_HAND = 200  # sends under way at once
_DIGEST_CHARS = 32


def requests(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Give the number and the body of each line that is not blank."""
    for number, line in enumerate(lines, 1):
        if body := line.strip():
            yield number, body


def fault_of(number: int, body: str) -> str | None:
    """Return what is wrong with the body of a line; None: nothing."""
    try:
        decode(body, {})
    except PoisonError as poison:
        return f"line {number}: {poison.reason}"
    if (size := len(body.encode())) > BYTES_MAX:
        return f"line {number}: has {size} bytes; SQS takes {BYTES_MAX}"
    return None


def made_up(count: int) -> Iterator[str]:
    """Give `count` valid requests, for trying things out."""
    random = SystemRandom()
    for _ in range(count):
        n = f"{random.getrandbits(64):016x}"
        fields = {
            "request_id": f"req-{n}",
            "model_name": "gpt-l-7b",
            "input_data_url": f"s3://inference-inputs/{n}.json",
        }
        yield json.dumps(fields)


class Journal:
    """The digests of what was sent, a line each, so that a submission that was cut off goes on where it was.

    A line that changed since is another line. What was sent but not yet written down when the process died is sent
    again, and dropped by the ledger as a duplicate.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._sent: Counter[str] = Counter()
        if path is not None and path.exists():
            digests = path.read_text(encoding="ascii", errors="replace").splitlines()
            self._sent.update(digest for digest in digests if len(digest) == _DIGEST_CHARS)  # the last may be torn
        self.found = self._sent.total()

    def has(self, body: str) -> bool:
        """Whether it was sent; a body that is there twice counts twice."""
        digest = _digest(body)
        if not self._sent[digest]:
            return False
        self._sent[digest] -= 1
        return True

    @contextmanager
    def writing(self) -> Iterator[Callable[[str], None]]:
        """Give what writes down a body that was sent. Raises ConfigurationError if nothing can be written."""
        if self._path is None:
            yield lambda _: None
            return
        try:
            file = self._path.open("a", encoding="ascii")
        except OSError as fault:
            raise ConfigurationError([f"the journal {self._path} cannot be written: {fault.strerror}"]) from fault
        with file:
            file.write("\n")  # after a torn line

            def write(body: str) -> None:
                file.write(f"{_digest(body)}\n")
                file.flush()

            yield write

    def finish(self) -> None:
        """All was sent: there is nothing to go on with."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARS]


async def submit(
    settings: Settings,
    clients: Clients,
    bodies: Iterable[tuple[int, str]],
    *,
    again: bool,
    sent: Callable[[str], None],
) -> list[str]:
    """Send the numbered bodies; return the faults of those that were not. `sent` hears of each that was.

    `again`: dispatch requests that were dispatched before once more, on purpose.
    """
    region = Region(settings.home_region)
    caller = await clients.open("sqs", region, pool=POOL, attempts=ATTEMPTS)
    # any later number is higher than any earlier one, and every generation is higher than none
    attributes = {GENERATION: Attribute("Number", str(int(time.time())))} if again else {}
    room = asyncio.Semaphore(IN_HAND)
    faults: list[tuple[int, str]] = []

    async def one(queue: SendingQueue, number: int, body: str) -> None:
        try:
            await queue.send(Outgoing(body, attributes, None))
            sent(body)
        except (AwsError, LeaseTooShortError) as fault:
            faults.append((number, f"line {number}: {fault}"))
        finally:
            room.release()

    async with SendingQueue(settings.master_queue_url, caller) as queue, asyncio.TaskGroup() as group:
        for number, body in bodies:
            await room.acquire()
            group.create_task(one(queue, number, body))
    return [fault for _, fault in sorted(faults)]
