"""A reverse proxy between a dispatcher and the emulator that fails on request: at a call, before or after its work.

A fault is for calls of one operation, one Region, or with a text in their body; the first that fits strikes.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto

import aiohttp
from aiohttp import web

HOST = "127.0.0.1"
_SCOPE = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request")
_HOP_BY_HOP = {"host", "connection", "transfer-encoding", "content-length", "keep-alive"}


class How(Enum):
    ERROR = auto()  # an error is answered, nothing done
    LOST = auto()  # done, and the connection closed without an answer
    CUT = auto()  # done, and the connection closed in the middle of the answer
    GARBAGE = auto()  # done, and something that is no JSON answered with status 200
    HALF = auto()  # every other entry of the batch is done, the rest is answered as failed
    RESET = auto()  # the connection closed, nothing done
    HANG = auto()  # no answer until lifted, nothing done
    HANG_DONE = auto()  # the same, but it was done
    DELAY = auto()  # done and answered, late
    DELAY_DONE = auto()  # done at once, answered late


@dataclass(slots=True, eq=False)
class Fault:
    how: How
    operation: str = ""  # such as SendMessageBatch; empty: any
    region: str = ""
    service: str = ""  # sqs or dynamodb
    containing: str = ""  # in the call's body
    times: int | None = None  # None: until lifted
    status: int = 503
    code: str = "ServiceUnavailable"
    seconds: float = 0.0
    bodies: list[bytes] = field(default_factory=list)  # of the calls that it struck
    answers: list[bytes] = field(default_factory=list)  # that the emulator gave and nobody got, or got late
    lifted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def hits(self) -> int:
        return len(self.bodies)

    def lift(self) -> None:
        self.lifted.set()

    def fits(self, call: "Call") -> bool:
        return (
            not self.lifted.is_set()
            and (self.times is None or self.hits < self.times)
            and self.operation in ("", call.operation)
            and self.region in ("", call.region)
            and self.service in ("", call.service)
            and self.containing.encode() in call.body
        )


@dataclass(slots=True, eq=False)
class Call:
    operation: str
    region: str
    service: str
    body: bytes
    caller: str = ""  # its access key
    struck: Fault | None = None
    answer: bytes = b""  # the emulator's


class Proxy:
    """Use as a context. `calls` has every call with both bodies, byte for byte; with `hears`, nothing is kept, and it
    is told of every call as it comes, and again when it has ended.
    """

    def __init__(self, upstream: str, hears: "Callable[[Call, bool], None] | None" = None) -> None:
        self._upstream = upstream
        self._hears = hears
        self._faults: list[Fault] = []
        self._runners: list[web.AppRunner] = []
        self._open: set[asyncio.Task[web.StreamResponse]] = set()
        self.calls: list[Call] = []
        self.endpoint = ""

    async def __aenter__(self) -> "Proxy":
        # a connection a call: the emulator closes idle ones, and a call lost to that would be a fault nobody asked for
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(auto_decompress=False, timeout=timeout, connector=connector)
        self._runner, port = await self.listen()
        self.endpoint = f"http://{HOST}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._open:  # polls, and what hangs
            task.cancel()
        for runner in self._runners:
            await runner.cleanup()
        await self._session.close()

    async def listen(self, port: int = 0) -> tuple[web.AppRunner, int]:
        """Listen on one more port: a Region of its own can then refuse connections, by `cleanup` of the runner."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, HOST, port, reuse_address=True).start()
        return runner, int(runner.addresses[0][1])

    def forget(self, fault: Fault) -> None:
        """Lift it, and keep nothing of it."""
        fault.lift()
        self._faults.remove(fault)

    def add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    @contextmanager
    def having(self, fault: Fault) -> Iterator[Fault]:
        self.add(fault)
        try:
            yield fault
        finally:
            fault.lift()

    def counts(self) -> Counter[tuple[str, str]]:
        """Calls by operation and Region."""
        return Counter((call.operation, call.region) for call in self.calls)

    def made(self, operation: str, containing: str = "") -> list[Call]:
        return [call for call in self.calls if call.operation == operation and containing.encode() in call.body]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.create_task(self._answer(request))
        self._open.add(task)
        try:
            return await task
        except (asyncio.CancelledError, aiohttp.ClientError):
            return self._close(request)
        finally:
            self._open.discard(task)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        scope = _SCOPE.search(request.headers.get("Authorization", ""))
        caller, region, service = (scope[1], scope[2], scope[3]) if scope else ("", "", "")
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        call = Call(operation, region, service, await request.read(), caller)
        call.struck = next((fault for fault in self._faults if fault.fits(call)), None)
        if self._hears is None:
            self.calls.append(call)
            return await self._answer_call(request, call)
        self._hears(call, False)
        try:
            return await self._answer_call(request, call)
        finally:
            self._hears(call, True)

    async def _answer_call(self, request: web.Request, call: Call) -> web.StreamResponse:
        fault = call.struck
        if fault is None:
            return await self._forward(request, call)
        fault.bodies.append(call.body)
        if fault.how in (How.LOST, How.CUT, How.GARBAGE, How.HANG_DONE, How.DELAY_DONE):
            answer = await self._forward(request, call)
            fault.answers.append(call.answer)
            match fault.how:
                case How.CUT:
                    return await self._cut(request, answer, call.answer)
                case How.GARBAGE:
                    return web.Response(body=b"<html>oops</html>", content_type="text/html")
                case How.HANG_DONE:
                    await fault.lifted.wait()
                case How.DELAY_DONE:
                    await asyncio.sleep(fault.seconds)
                    return answer
            return self._close(request)
        match fault.how:
            case How.HALF:
                return await self._half(request, call, fault.code)
            case How.ERROR:
                said = {"__type": f"com.amazonaws#{fault.code}", "message": "a fault on request"}
                return web.Response(
                    status=fault.status, body=json.dumps(said), content_type="application/x-amz-json-1.0"
                )
            case How.DELAY:
                await asyncio.sleep(fault.seconds)
                return await self._forward(request, call)
            case How.HANG:
                await fault.lifted.wait()
        return self._close(request)

    async def _forward(self, request: web.Request, call: Call) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        async with self._session.request(
            request.method, self._upstream + request.path_qs, data=call.body, headers=headers
        ) as answer:
            call.answer = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            return web.Response(status=answer.status, body=call.answer, headers=kept)

    async def _half(self, request: web.Request, call: Call, code: str) -> web.StreamResponse:
        asked = json.loads(call.body)
        name = "Statements" if "Statements" in asked else "Entries"
        items = asked[name]
        body = json.dumps(asked | {name: items[::2]}).encode()
        part = Call(call.operation, call.region, call.service, body, call.caller)
        answer = await self._forward(request, part)
        said = json.loads(part.answer)
        if name == "Statements":
            done, failed = iter(said["Responses"]), {"Error": {"Code": code, "Message": "a fault on request"}}
            said["Responses"] = [failed if n % 2 else next(done) for n in range(len(items))]
        else:
            failures = [{"Id": entry["Id"], "Code": code, "SenderFault": False} for entry in items[1::2]]
            said["Failed"] = [*(said.get("Failed") or []), *failures]
        call.answer = json.dumps(said).encode()
        return web.Response(status=answer.status, body=call.answer, content_type="application/x-amz-json-1.0")

    @staticmethod
    async def _cut(request: web.Request, answer: web.Response, body: bytes) -> web.StreamResponse:
        part = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
        part.content_length = len(body) + 10
        await part.prepare(request)
        await part.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return part

    @staticmethod
    def _close(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # goes nowhere
