"""HTTP POSTs to one address, over aiohttp's connections but without its session.

Of what a small call costs, the session is more than half: it makes a request and a response with their multidicts,
filters cookies and looks for redirects, anew each time. Below it aiohttp keeps the pool, connects, speaks TLS and to
proxies, limits the time and reads what comes; all of that is used here, as the session uses it.
"""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp
from yarl import URL


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]  # their names in any case
    body: bytes


class Posts:
    """`fixed`: headers that are the same each time. They and those of a call are for the caller to keep in one line."""

    def __init__(
        self,
        connector: aiohttp.BaseConnector,
        url: URL,
        fixed: Mapping[str, str],
        *,
        proxy: str | None,
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self._connector = connector
        self._timeout = timeout
        by = URL(proxy) if proxy else None
        # what the connector asks, to know where to connect
        self._to = aiohttp.ClientRequest("POST", url, loop=asyncio.get_running_loop(), proxy=by)
        lines = {"Host": url.host_port_subcomponent or "", "Accept": "*/*", **fixed}
        target = url.raw_path_qs
        if by is not None and url.scheme == "http":  # it reads the request; https goes through a tunnel
            target = str(url)
            if by.user:
                lines["Proxy-Authorization"] = aiohttp.encode_basic_auth(by.user, by.password or "")
        self._head = f"POST {target} HTTP/1.1\r\n{_lines(lines)}"

    async def __call__(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return the answer, whatever its status. Raises aiohttp's errors and OSError when there is none.

        aiohttp.ClientConnectorError and ConnectionTimeoutError say that nothing was sent.
        """
        head = f"{self._head}{_lines(headers)}Content-Length: {len(body)}\r\n\r\n".encode()
        try:
            connection = await self._connector.connect(self._to, [], self._timeout)
        except TimeoutError as late:
            raise aiohttp.ConnectionTimeoutError(f"no connection to {self._to.url} in time") from late
        try:
            protocol = connection.protocol
            if protocol is None or protocol.transport is None:
                raise aiohttp.ClientConnectionError("the connection was lost at once")
            protocol.set_response_params(read_timeout=self._timeout.sock_read, auto_decompress=False)
            protocol.transport.writelines([head, body])
            protocol.start_timeout()
            message, payload = await protocol.read()
            while 100 <= message.code < 200:  # "go on", which nobody asked for
                message, payload = await protocol.read()
            answer = Answer(message.code, message.headers, await payload.read())
        except BaseException:  # what is still to come must not be taken for the next call's answer
            connection.close()
            raise
        connection.release()
        return answer


def _lines(headers: Mapping[str, str]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
