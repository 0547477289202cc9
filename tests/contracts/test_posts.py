"""POSTs over aiohttp's connections: whose answer is whose, whatever the far side does with its bytes.

On both event loops (`conftest.py`): the daemon runs on uvloop, tests elsewhere on asyncio's, which buffers otherwise.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from yarl import URL

from dispatcher.aws.posts import Posts

Reply = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=1.0, sock_read=1.0)


def said(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines])
    return f"{head}\r\n\r\n".encode() + body


async def echo(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(said(body))


@dataclass
class Far:
    """A server that is written by hand, since no good one would answer like this. By default it gives the body back."""

    reply: Reply = echo
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                await self.reply(writer, await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def posting(far: Serve, *, proxied: str = "", pool: int = 2) -> AsyncIterator[Posts]:
    server = await asyncio.start_server(far, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with aiohttp.TCPConnector(limit=pool) as connector:
        url, proxy = URL(f"http://127.0.0.1:{port}/path"), None
        if proxied:
            url, proxy = URL("http://elsewhere.example/path"), f"http://{proxied}127.0.0.1:{port}"
        try:
            yield Posts(connector, url, {"User-Agent": "us"}, proxy=proxy, timeout=TIMEOUT)
        finally:
            server.close()


async def test_one_connection_carries_call_after_call() -> None:
    far = Far()
    async with posting(far) as post:
        for body in (b"", b"one", b"2" * 3_000_000):
            status, headers, back = await post({"X-More": "yes"}, body)
            assert (status, headers["content-length"], back) == (200, str(len(body)), body)
    assert far.connections == 1
    first = far.heads[0].split("\r\n")
    assert first[0] == "POST /path HTTP/1.1"
    assert {"User-Agent: us", "X-More: yes", "Content-Length: 0"} <= set(first)


@pytest.mark.parametrize("gone", ["cancelled", "timed out"])
async def test_nobody_gets_the_answer_to_a_call_that_was_given_up(gone: str) -> None:
    answered = asyncio.Event()

    async def late(writer: asyncio.StreamWriter, body: bytes) -> None:
        if body == b"first":
            await answered.wait()
        writer.write(said(body))

    async with posting(Far(late), pool=1) as post:
        first = asyncio.create_task(post({}, b"first"))
        await asyncio.sleep(0.1)
        if gone == "cancelled":
            first.cancel()
        with pytest.raises(asyncio.CancelledError if gone == "cancelled" else aiohttp.SocketTimeoutError):
            async with asyncio.timeout(5):
                await first
        answered.set()
        for body in (b"second", b"third"):
            assert (await post({}, body)).body == body


async def test_two_answers_to_one_call_are_not_one_for_the_next() -> None:
    async def twice(writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(said(body) + said(b"smuggled"))

    far = Far(twice)
    async with posting(far) as post:
        for body in (b"one", b"two"):
            assert (await post({}, body)).body == body
    assert far.connections == 2


async def test_an_answer_that_nobody_asked_for_is_not_one_for_the_next() -> None:
    """It comes while the connection lies in the pool, like a load balancer's word that nothing was asked for long."""

    async def more(writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(said(body))
        await asyncio.sleep(0.02)
        writer.write(said(b"stale"))

    async with posting(Far(more)) as post:
        for body in (b"one", b"two", b"three"):
            assert (await post({}, body)).body == body
            await asyncio.sleep(0.05)


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def endless(writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        writer.close()

    far = Far(endless)
    async with posting(far) as post:
        for body in (b"one", b"two"):
            assert (await post({}, body)).body == body
    assert far.connections == 2


@dataclass
class Slow:
    """A server that reads a request only when it is let."""

    lets: asyncio.Event = field(default_factory=asyncio.Event)
    read: list[int] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.lets.wait()
        try:
            while some := await reader.read(65536):
                self.read.append(len(some))
        except ConnectionError:
            pass
        writer.close()


async def test_what_was_not_sent_of_a_call_that_was_given_up_is_never_sent() -> None:
    slow, size = Slow(), 20_000_000
    async with posting(slow) as post:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await post({}, bytes(size))
        slow.lets.set()
        await asyncio.sleep(0.3)
    assert sum(slow.read) < size


async def test_the_time_to_send_is_no_time_to_read() -> None:
    """A large batch on a slow line: its answer is not late while it is still being sent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        await asyncio.sleep(1.3)
        await reader.readexactly(int(head.split("Content-Length: ")[1].split("\r\n")[0]))
        writer.write(said(b"all"))
        writer.close()

    async with posting(serve) as post:
        assert (await post({}, bytes(20_000_000))).body == b"all"


async def test_a_call_that_is_answered_before_all_was_sent_does_not_hold_up_the_next() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said(b"", status="503 No"))
        await asyncio.sleep(5)

    async with posting(early) as post:
        for _ in range(2):
            assert (await post({}, bytes(20_000_000))).status == 503


@pytest.mark.parametrize("said_first", ["100 Continue", "101 Switching Protocols"])
async def test_a_word_before_the_answer_does_not_make_anybody_wait_for_ever(said_first: str) -> None:
    async def hesitant(writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(f"HTTP/1.1 {said_first}\r\n\r\n".encode())

    async with posting(Far(hesitant)) as post, asyncio.timeout(5):
        with pytest.raises(aiohttp.ClientConnectionError):
            await post({}, b"body")


async def test_go_on_is_no_answer() -> None:
    async def hesitant(writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + said(body, status="403 No"))

    async with posting(Far(hesitant)) as post:
        assert await post({}, b"body") == (403, {"Content-Length": "4"}, b"body")


async def test_an_answer_may_come_in_pieces_and_without_its_length() -> None:
    async def chunked(writer: asyncio.StreamWriter, body: bytes) -> None:
        for piece in (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: ", b"chunked\r\n\r\n2\r\n", body[:2], b"\r\n0\r\n\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.01)

    far = Far(chunked)
    async with posting(far) as post:
        for _ in range(2):
            assert (await post({}, b"ab")).body == b"ab"
    assert far.connections == 1


async def test_a_connection_that_ends_with_its_answer_is_not_used_again() -> None:
    async def last(writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(said(body, "Connection: close"))

    far = Far(last)
    async with posting(far) as post:
        for body in (b"one", b"two"):
            assert (await post({}, body)).body == body
    assert far.connections == 2


@pytest.mark.parametrize(
    "part", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", said(b"whole")[:-2], b"nonsense\r\n\r\n", b"\x16\x03\x01"]
)
async def test_half_an_answer_is_none(part: bytes) -> None:
    async def half(writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(part if body == b"half" else said(body))
        if body == b"half":
            writer.close()

    async with posting(Far(half)) as post:
        with pytest.raises((aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError)):
            await post({}, b"half")
        assert (await post({}, b"next")).body == b"next"


async def test_a_plain_proxy_reads_the_whole_address_and_who_asks() -> None:
    far = Far()
    async with posting(far, proxied="user:secret@") as post:
        for _ in range(2):
            assert (await post({}, b"body")).body == b"body"
    assert far.connections == 1
    for head in far.heads:
        lines = head.split("\r\n")
        assert lines[0] == "POST http://elsewhere.example/path HTTP/1.1"
        assert {"Host: elsewhere.example", "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ="} <= set(lines)


async def test_nobody_there_says_that_nothing_was_sent() -> None:
    async with posting(Far()) as post:
        pass
    async with aiohttp.TCPConnector() as connector:
        nobody = Posts(connector, URL("http://127.0.0.1:1/"), {}, proxy=None, timeout=TIMEOUT)
        with pytest.raises(aiohttp.ClientConnectorError):
            await nobody({}, b"body")
        with pytest.raises(aiohttp.ClientConnectionError):  # closed, as at the end of the process
            await post({}, b"body")


@pytest.mark.parametrize("value", ["a\r\nX-More: 1", "a\nb", "a\0"])
async def test_a_header_of_several_lines_is_not_sent(value: str) -> None:
    far = Far()
    async with posting(far) as post:
        with pytest.raises(ValueError, match="several lines"):
            await post({"X-Token": value}, b"body")
    assert not far.heads
