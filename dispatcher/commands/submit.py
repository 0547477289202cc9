"""Validates requests and sends them to the master queue; what a journal says was sent is not sent again."""

import asyncio
import fcntl
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from random import SystemRandom

from dispatcher.aws.clients import Clients
from dispatcher.aws.regional import SendingQueue
from dispatcher.errors import AwsError, ConfigurationError, PoisonError
from dispatcher.model import Attribute, Outgoing, Region
from dispatcher.policy.decode import GENERATION, decode
from dispatcher.policy.envelope import BYTES_MAX, size_of
from dispatcher.settings import Settings

POOL = 10
ATTEMPTS = 3
IN_HAND = 200  # sends under way at once
_DIGEST_CHARS = 32
_MAGIC = "dispatcher submit"
_REFUSED = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What SQS refuses in a body (SendMessage reference)."""


def requests(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Give the number and the body of each line that is not blank."""
    for number, line in enumerate(lines, 1):
        if body := line.strip():
            yield number, body


def request_id(body: str, generation: int) -> str:
    """Return the id of a body that can be sent and dispatched; raise PoisonError with what is wrong with it."""
    message = decode(body, {})
    if odd := _REFUSED.search(body):
        raise PoisonError(f"SQS takes no {odd[0]!a}; write it as \\uXXXX")
    if (size := size_of(body, _attributes(generation))) > BYTES_MAX:
        raise PoisonError(f"is {size} bytes; SQS takes {BYTES_MAX}")
    return message.request_id


def _attributes(generation: int) -> dict[str, Attribute]:
    return {GENERATION: Attribute("Number", str(generation))} if generation else {}


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
    """What was sent, and where to: its queue and generation, then a digest a line. A submission that was cut off goes
    on where it was; a line that changed since is another line.

    What was sent but not yet written down when the process died is sent again, and dropped by the ledger as a
    duplicate: under `--again` too, since the generation is the journal's.
    """

    def __init__(self, path: Path | None, queue_url: str, again: bool) -> None:
        """Raises ConfigurationError for what is no journal, or one of another submission."""
        # any later number is higher than any earlier one, and every generation is higher than none
        self.generation = int(time.time()) if again else 0
        self._path = path
        self._queue_url = queue_url
        self._sent: Counter[str] = Counter()
        if path is None or not path.exists():
            return
        if not path.is_file():
            raise ConfigurationError([f"--journal: {path} is no file"])
        header, *digests = path.read_text(encoding="utf-8", errors="replace").split("\n")
        if not header and not digests[:1]:
            return
        try:
            begun = json.loads(header)[_MAGIC]
            where, self.generation = begun["queue"], int(begun["generation"])
        except (ValueError, TypeError, LookupError) as fault:
            raise ConfigurationError([f"--journal: {path} is no journal of a submission; name another file"]) from fault
        if where != queue_url:
            raise ConfigurationError([f"{path} is of a submission to {where}; remove it to send everything here"])
        if bool(self.generation) != again:
            how = "with" if self.generation else "without"
            raise ConfigurationError([f"{path} is of a submission {how} --again; go on so, or remove it to begin anew"])
        self._sent.update(digest for digest in digests if len(digest) == _DIGEST_CHARS)  # the last may be torn

    def new(self) -> Callable[[str], bool]:
        """Return what tells, for one pass over the bodies, whether each is still to be sent; of twins, each counts."""
        left = self._sent.copy()

        def is_new(body: str) -> bool:
            digest = _digest(body)
            if not left[digest]:
                return True
            left[digest] -= 1
            return False

        return is_new

    @contextmanager
    def writing(self) -> Iterator[Callable[[str], None]]:
        """Give what writes down a body that was sent. Raises ConfigurationError if nothing can be written."""
        if self._path is None:
            yield lambda _: None
            return
        try:
            file = self._path.open("a", encoding="utf-8")
        except OSError as fault:
            raise ConfigurationError([f"the journal {self._path} cannot be written: {fault.strerror}"]) from fault
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as fault:
                raise ConfigurationError([f"another submission is at work with the journal {self._path}"]) from fault
            if file.tell():
                file.write("\n")  # after a torn line
            else:
                file.write(json.dumps({_MAGIC: {"queue": self._queue_url, "generation": self.generation}}) + "\n")

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
    generation: int,
    sent: Callable[[str], None],
) -> list[tuple[int, AwsError]]:
    """Send the numbered bodies; return the numbers of those that were not, and why. `sent` hears of each that was.

    `generation`: above 0, requests that were dispatched under a lower one are dispatched once more, on purpose.
    """
    region = Region(settings.home_region)
    caller = await clients.open("sqs", region, pool=POOL, attempts=ATTEMPTS)
    attributes = _attributes(generation)
    room = asyncio.Semaphore(IN_HAND)
    faults: list[tuple[int, AwsError]] = []

    async def one(queue: SendingQueue, number: int, body: str) -> None:
        try:
            await queue.send(Outgoing(body, attributes, None))
            sent(body)
        except AwsError as fault:
            faults.append((number, fault))
        finally:
            room.release()

    async with SendingQueue(settings.master_queue_url, caller) as queue, asyncio.TaskGroup() as group:
        for number, body in bodies:
            await room.acquire()
            group.create_task(one(queue, number, body))
    return sorted(faults, key=itemgetter(0))
