"""AWS for measuring others by: SQS and DynamoDB over HTTP, fast enough never to be the limit, in a process of its own.

    python -m benchmarks.fake --port 4599 --latency-ms 10,80,150

What calls do is what `tests/fakes/aws.py` does, which the world tests lean on; here are the protocol and the time that
a call takes. One port serves every Region: a call's signature says where it is meant to go, and signatures are not
checked (tests/contracts does). A call takes effect half its latency after it came and is answered after the other half;
a long poll is answered by the first message that comes, as with SQS.

Workers take what regional queues get at once (`Sink`), so depths are zero: what is measured is the way there. `/bench`
is for whoever measures: POST a JSON object to seed, to produce at a steady rate, to start counting anew; GET what
arrived.
"""

import argparse
import asyncio
import base64
import hashlib
import re
import struct
import time
import zlib
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, cast
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import orjson
import uvloop
from botocore.exceptions import ClientError

from tests.fakes.aws import FakeAws, Queue

HOME = "us-east-1"
REGIONS = [
    HOME, "us-west-2", "eu-west-1", "us-east-2", "us-west-1", "ca-central-1", "sa-east-1", "eu-west-2", "eu-west-3",
    "eu-central-1", "eu-north-1", "eu-south-1", "ap-south-1", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3",
    "ap-southeast-1", "ap-southeast-2", "ap-east-1", "me-south-1", "af-south-1", "eu-central-2", "eu-south-2",
    "ap-south-2", "ap-southeast-3", "ap-southeast-4", "me-central-1", "il-central-1", "ca-west-1", "ap-southeast-5",
]  # fmt: skip
MASTER, TABLE = "master", "ledger"
RECEIVES_MAX = 3
LOOK_S = 0.05  # how often hidden messages are looked for that have become visible
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TARGET = re.compile(rb"\r\nx-amz-target: *(?:AmazonSQS|DynamoDB_20120810)\.(\w+)", re.IGNORECASE)
_SCOPE = re.compile(rb"Credential=[^/]+/\d+/([\w-]+)/(\w+)/aws4_request")
_REQUEST_ID = re.compile(r'"request_id": ?"([^"]+)"')
_ENTRY = re.compile(r"\w+BatchRequestEntry\.(\d+)\.(\w+)")  # of a batch in SQS's old protocol
_WORDS = re.compile(r"(?<!^)(?=[A-Z])")


@dataclass(slots=True, eq=False)
class Sink(Queue):
    """A regional queue whose workers take each message as it comes. Remembers when which request came."""

    arrivals: list[tuple[str, float]] = field(default_factory=list)

    def put(self, body: str, attributes: Mapping[str, Any] = {}, system: Mapping[str, Any] = {}) -> str:
        found = _REQUEST_ID.search(body, 0, 400)
        self.arrivals.append((found[1] if found else body[:100], self.now()))
        return f"{self.name}-{next(self.ids)}"


class Bell(asyncio.Event):
    """Rung when a queue gets a message: the polls that wait are answered in the order in which they came."""

    def __init__(self, aws: FakeAws, queue: Queue) -> None:
        super().__init__()
        self._aws = aws
        self._queue = queue
        self.polls: deque[tuple[Call, asyncio.TimerHandle]] = deque()

    def wait_for(self, call: "Call", seconds: float) -> None:
        end = asyncio.get_running_loop().call_later(seconds, self._end, call)
        self.polls.append((call, end))

    def set(self) -> None:
        while self.polls:
            call, end = self.polls[0]
            if call.gone:
                end.cancel()
                self.polls.popleft()
                continue
            answer = self._aws.do(call.region, call.operation, call.asked)
            if not answer:
                return
            end.cancel()
            self.polls.popleft()
            call.answer(answer)

    def _end(self, call: "Call") -> None:
        self.polls = deque(poll for poll in self.polls if poll[0] is not call)
        call.answer({})


@dataclass(slots=True, eq=False)
class Call:
    """One request, on its way to an answer."""

    transport: asyncio.WriteTransport
    region: str
    service: str
    operation: str
    asked: Mapping[str, Any]
    half_s: float  # of its latency
    query: bool  # SQS's old protocol: a form, answered by XML

    @property
    def gone(self) -> bool:
        """The asker has closed the connection."""
        return self.transport.is_closing()

    def answer(self, said: Mapping[str, Any], status: int = 200) -> None:
        said = _with_md5s(self, said)
        body = _xml(self.operation, said) if self.query else orjson.dumps(said)
        head = (
            f"HTTP/1.1 {status} {'OK' if status == 200 else 'Bad Request'}\r\n"
            f"Content-Type: {'text/xml' if self.query else 'application/x-amz-json-1.0'}\r\n"
            f"Date: {formatdate(usegmt=True)}\r\nx-amzn-RequestId: bench\r\nContent-Length: {len(body)}\r\n"
        )
        if self.service == "dynamodb":
            head += f"x-amz-crc32: {zlib.crc32(body)}\r\n"
        self.write(head.encode() + b"\r\n" + body)

    def write(self, data: bytes) -> None:
        if self.half_s:
            asyncio.get_running_loop().call_later(self.half_s, self._write, data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)


class Server:
    """`latencies_s`: of SQS in each Region; `table_s`: of DynamoDB."""

    def __init__(self, latencies_s: Mapping[str, float], table_s: float, port: int) -> None:
        loop = asyncio.get_running_loop()
        self.epoch_s = time.time() - loop.time()
        self.aws = FakeAws(loop.time, self.epoch_s)
        self.aws.host = f"http://127.0.0.1:{port}"
        self.aws.tables[TABLE] = {}
        self._latencies_s = latencies_s
        self._table_s = table_s
        self.calls: Counter[str] = Counter()
        self._sent_at: dict[str, float] = {}  # of each request, its first message
        self._seeded = self._messages = 0
        dead = self.aws.queue(HOME, "dead")
        self.master = self.aws.queue(HOME, MASTER, dead=dead, receives_max=RECEIVES_MAX)
        self.master.arrived = self.bell = Bell(self.aws, self.master)
        self.sinks = [Sink(f"work-{r}", r, loop.time, self.master.ids, self.aws.host) for r in latencies_s]
        for sink in self.sinks:
            self.aws.add(sink)
        self._work: set[asyncio.Task[None]] = {loop.create_task(self._look())}

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.bell.set()

    def take(self, transport: asyncio.WriteTransport, head: bytes, body: bytes) -> None:
        """One whole request has come."""
        if b" /bench" in head[:12]:
            said = self._produce(orjson.loads(body)) if head.startswith(b"POST") else self._result()
            Call(transport, HOME, "bench", "bench", {}, 0.0, query=False).answer(said)
            return
        scope = _SCOPE.search(head)
        region, service = (scope[1].decode(), scope[2].decode()) if scope else (HOME, "sqs")
        target = _TARGET.search(head)
        asked: dict[str, Any] = orjson.loads(body) if target else _form(body or _query(head))
        operation = _WORDS.sub("_", target[1].decode() if target else asked.pop("Action")).lower()
        latency_s = self._table_s if service == "dynamodb" else self._latencies_s[region]
        call = Call(transport, region, service, operation, asked, latency_s / 2, query=target is None)
        if call.half_s:
            asyncio.get_running_loop().call_later(call.half_s, self._do, call)
        else:
            self._do(call)

    def _do(self, call: Call) -> None:
        self.calls[call.operation] += 1
        try:
            answer = self.aws.do(call.region, call.operation, call.asked)
        except ClientError as refused:
            said = dict(refused.response)
            code = said.pop("Error")["Code"]  # type: ignore[index]  # the stubs know no keys
            said.pop("ResponseMetadata")
            spaces = {"dynamodb": "com.amazonaws.dynamodb.v20120810", "sqs": "com.amazonaws.sqs"}
            call.answer({"__type": f"{spaces[call.service]}#{code}", "message": "by the fake", **said}, 400)
            return
        except AssertionError as unknown:  # what it cannot do it refuses loudly, or a figure would rest on a guess
            call.answer({"__type": "bench#InvalidAction", "message": str(unknown)}, 400)
            return
        wait_s = float(call.asked.get("WaitTimeSeconds") or 0)
        if call.operation == "receive_message" and not answer and wait_s and call.asked["QueueUrl"] == self.master.url:
            self.bell.wait_for(call, wait_s)
        else:
            call.answer(answer)

    # --- for whoever measures -----------------------------------------------------------------------------------

    def _produce(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """`count` messages of `size` bytes, at once or at `per_second`; a part `twice` repeats an earlier request."""
        if asked.get("reset"):
            self.calls.clear()
            self._sent_at.clear()
            self._messages = 0
            for sink in self.sinks:
                sink.arrivals.clear()
        count, rate = int(asked.get("count", 0)), float(asked.get("per_second", 0))
        size, twice = int(asked.get("size", 500)), float(asked.get("twice", 0.0))
        self._messages += count
        if rate:
            task = asyncio.get_running_loop().create_task(self._steadily(count, rate, size, twice))
            self._work.add(task)
            task.add_done_callback(self._work.discard)
        else:
            for number in range(count):
                self._send(number, size, twice)
        return {"messages": self._messages, "left": len(self.master.messages), "polls": len(self.bell.polls)}

    async def _steadily(self, count: int, rate: float, size: int, twice: float) -> None:
        loop = asyncio.get_running_loop()
        started, sent = loop.time(), 0
        while sent < count:
            due = min(count, int((loop.time() - started) * rate))
            for number in range(sent, due):
                self._send(number, size, twice)
            sent = due
            await asyncio.sleep(0.001)

    def _send(self, number: int, size: int, twice: float) -> None:
        again = twice and number % round(1 / twice) == 1
        if not again:
            self._seeded += 1
        request_id = f"request-{self._seeded:09}"
        body = f'{{"request_id": "{request_id}", "model_name": "m", "input_data_url": "s3://b/k", "filling": "'
        self.master.put(body + "x" * (size - len(body) - 2) + '"}')
        self._sent_at.setdefault(request_id, self.master.now())

    def _result(self) -> dict[str, Any]:
        """What arrived, what is left, the calls so far, and the way's time (seconds) of each first copy, by Region.

        `middle_per_s`: messages a second while a tenth to nine tenths of all arrived; 0 if that is no time.
        """
        visible, in_flight = self.master.depth()
        seen: set[str] = set()
        took: dict[str, list[float]] = {}
        for sink in self.sinks:
            for request_id, at in sink.arrivals:
                if request_id not in seen and request_id in self._sent_at:
                    took.setdefault(sink.region, []).append(at - self._sent_at[request_id])
                seen.add(request_id)
        times = sorted(at for sink in self.sinks for _, at in sink.arrivals)
        return {
            "messages": self._messages,
            "requests": len(self._sent_at),
            "missing": len(self._sent_at.keys() - seen),
            "unknown": len(seen - self._sent_at.keys()),
            "copies": len(times) - len(seen),
            "visible": visible,
            "in_flight": in_flight,
            "dead": sum(self.aws.queues[HOME, f"{self.aws.host}/000000000000/dead"].depth()),
            "polls": len(self.bell.polls),
            "calls": dict(self.calls),
            "took_s": took,
            "middle_per_s": middle_per_s(times) * self._messages / max(1, len(seen)),
        }


class Connection(asyncio.Protocol):
    """HTTP/1.1, kept alive; a request's body has a length."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                if b"expect: 100-continue" in head.lower():
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    self._buffer = re.sub(rb"(?i)\r\nexpect: 100-continue", b"", self._buffer, count=1)
                return
            body, self._buffer = self._buffer[end + 4 : whole], self._buffer[whole:]
            self._server.take(self._transport, head, body)


def middle_per_s(times: Sequence[float]) -> float:
    """Return how many came in a second between the first tenth of `times`, which are sorted, and the last."""
    first, last = len(times) // 10, len(times) * 9 // 10
    seconds = times[last] - times[first] if times else 0.0
    return (last - first) / seconds if seconds else 0.0


# --- digests, and SQS's old protocol --------------------------------------------------------------------------------


def md5_of_attributes(attributes: Mapping[str, Any]) -> str:
    """Return SQS's digest of message attributes (SQS Developer Guide, "Calculating the MD5 message digest")."""
    digest = hashlib.md5(usedforsecurity=False)

    def take(value: bytes) -> None:
        digest.update(struct.pack("!I", len(value)) + value)

    for name, attribute in sorted(attributes.items()):
        take(name.encode())
        take(attribute["DataType"].encode())
        binary = attribute["DataType"].startswith("Binary")
        digest.update(b"\x02" if binary else b"\x01")
        take(base64.b64decode(attribute["BinaryValue"]) if binary else attribute["StringValue"].encode())
    return digest.hexdigest()


def _md5(body: str) -> str:
    return hashlib.md5(body.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def _sent(asked: Mapping[str, Any]) -> dict[str, str]:
    digests = {"MD5OfMessageBody": _md5(asked["MessageBody"])}
    if attributes := asked.get("MessageAttributes"):
        digests["MD5OfMessageAttributes"] = md5_of_attributes(attributes)
    return digests


def _with_md5s(call: Call, said: Mapping[str, Any]) -> Mapping[str, Any]:
    match call.operation:
        case "send_message" if "MessageId" in said:
            return {**said, **_sent(call.asked)}
        case "send_message_batch":
            digests = {entry["Id"]: _sent(entry) for entry in call.asked["Entries"]}
            done = [{**entry, **digests[entry["Id"]]} for entry in said.get("Successful", ())]
            return {**said, **({"Successful": done} if done else {})}
        case "receive_message" if "Messages" in said:
            return {"Messages": [{**message, "MD5OfBody": _md5(message["Body"])} for message in said["Messages"]]}
    return said


def _query(head: bytes) -> bytes:
    """Return what stands in the first line after the question mark."""
    return head.split(b" ", 2)[1].partition(b"?")[2]


def _form(body: bytes) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    entries: dict[str, dict[str, str]] = {}
    for name, value in parse_qsl(body.decode()):
        if entry := _ENTRY.fullmatch(name):
            entries.setdefault(entry[1], {})[entry[2]] = value
        else:
            numeric = name in ("MaxNumberOfMessages", "VisibilityTimeout", "WaitTimeSeconds")
            asked[name] = int(value) if numeric else value
    return {**asked, "Entries": list(entries.values())} if entries else asked


def _xml(operation: str, said: Mapping[str, Any]) -> bytes:
    """What SQS answered before 2023, less the namespace, which aiosqs cannot read, and attributes, unasked for here."""
    name = "".join(word.capitalize() for word in operation.split("_"))
    lists = {"Messages": "Message", "Successful": f"{name}ResultEntry", "Failed": "BatchResultErrorEntry"}
    inner = _elements(said) + "".join(
        f"<{tag}>{_elements(one)}</{tag}>" for key, tag in lists.items() for one in said.get(key, ())
    )
    return (
        f'<?xml version="1.0"?><{name}Response><{name}Result>{inner}</{name}Result>'
        f"<ResponseMetadata><RequestId>bench</RequestId></ResponseMetadata></{name}Response>"
    ).encode()


def _elements(said: Mapping[str, Any]) -> str:
    return "".join(f"<{key}>{escape(value)}</{key}>" for key, value in said.items() if isinstance(value, str))


def latencies(text: str, regions: int) -> dict[str, float]:
    """Return each Region's latency in seconds; a list in milliseconds that is too short begins again."""
    given = [float(part) / 1000 for part in text.split(",")]
    return {region: given[number % len(given)] for number, region in enumerate(REGIONS[:regions])}


async def serve(port: int, latencies_s: Mapping[str, float], table_s: float) -> None:
    server = Server(latencies_s, table_s, port)
    listening = await asyncio.get_running_loop().create_server(lambda: Connection(server), "127.0.0.1", port)
    print("ready", flush=True)
    await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=4599)
    parser.add_argument("--regions", type=int, default=3)
    parser.add_argument("--latency-ms", default="10,80,150", help="of SQS in each Region, the home Region first")
    parser.add_argument("--table-latency-ms", type=float, default=5.0)
    asked = parser.parse_args()
    uvloop.run(serve(asked.port, latencies(asked.latency_ms, asked.regions), asked.table_latency_ms / 1000))


if __name__ == "__main__":
    main()
