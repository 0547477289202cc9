"""HTTP POSTs, over aiohttp's connections but without its session: what both kinds of client make their calls with.

Of what a small call costs, that session is more than half: it makes a request and a response with their multidicts,
filters cookies and looks for redirects, anew each time. Below it aiohttp keeps the pool, connects, speaks TLS and to
proxies, limits the time and reads what comes; all of that is used here, as the session uses it.
"""

import asyncio
import ssl
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Self

import aiohttp
from aiobotocore.awsrequest import AioAWSResponse
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http_exceptions import BadStatusLine
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.httpsession import ProxyConfiguration, create_urllib3_context, get_cert_path, mask_proxy_url
from yarl import URL

KEPT_ALIVE_S = 12.0  # a connection that nobody uses; as in aiobotocore
_SAID_HERE = {"content-length", "host", "accept-encoding"}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]  # their names in any case
    body: bytes


class _To(aiohttp.ClientRequest):
    """Where to connect: asked for each call, and always the same."""

    @cached_property
    def connection_key(self) -> ConnectionKey:  # theirs makes it anew each time
        return super().connection_key


class Posts:
    """POSTs to one address. `fixed`: headers that are the same each time, in one line each (else ValueError)."""

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
        self._to = _To("POST", url, loop=asyncio.get_running_loop(), proxy=by)
        lines = {"Host": url.host_port_subcomponent or "", "Accept": "*/*", "Accept-Encoding": "identity", **fixed}
        target = url.raw_path_qs
        if by is not None and url.scheme == "http":  # it reads the request; https goes through a tunnel
            target = str(url)
            if by.user or by.password:
                lines["Proxy-Authorization"] = aiohttp.encode_basic_auth(by.user or "", by.password or "")
        self._head = f"POST {target} HTTP/1.1\r\n{_lines(lines)}"

    async def __call__(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return the answer, whatever its status. Raises aiohttp's errors and OSError when there is none.

        aiohttp.ClientConnectorError, ConnectionTimeoutError and ClientHttpProxyError say that nothing was sent.
        """
        head = f"{self._head}{_lines(headers)}Content-Length: {len(body)}\r\n\r\n".encode()
        connection = await self._connect()
        protocol = connection.protocol
        try:
            if protocol is None or (transport := protocol.transport) is None or not protocol.is_connected():
                raise aiohttp.ClientConnectionError("the connection was lost at once")
            protocol.set_response_params(
                read_timeout=self._timeout.sock_read, read_until_eof=True, auto_decompress=False
            )
            transport.write(head + body)
            if not protocol.writing_paused:  # else much is still to be sent, and only the caller's limit is for that
                protocol.start_timeout()
            message, payload = await protocol.read()
            while message.code < 200:  # "go on", which nobody asked for
                protocol.start_timeout()
                message, payload = await protocol.read()
            # as a rule it came with its head, and needs no coroutines to be read
            said = payload.read_nowait() if payload.is_eof() else await payload.read()
            answer = Answer(message.code, message.headers, said)
            if transport.get_write_buffer_size():
                protocol.force_close()  # answered before all was sent: the rest would stand before the next call
        except BaseException:
            if protocol is not None:
                protocol.abort()  # what is not sent yet stays here, and what is still to come is for nobody
            connection.close()
            raise
        connection.release()
        return answer

    async def _connect(self) -> aiohttp.connector.Connection:
        """Return a connection on which nothing is under way, not even what came or failed while it lay in the pool."""
        while True:
            try:
                connection = await self._connector.connect(self._to, [], self._timeout)
            except TimeoutError as late:
                raise aiohttp.ConnectionTimeoutError(f"no connection to {self._to.url} in time") from late
            except aiohttp.ClientHttpProxyError as no:  # in full it names the proxy, password and all
                about = self._to.request_info
                raise aiohttp.ClientHttpProxyError(about, (), status=no.status, message=no.message) from None
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()


def _lines(headers: Mapping[str, str]) -> str:
    values = "".join(headers.values())
    if "\r" in values or "\n" in values or "\0" in values:
        raise ValueError("a header of several lines, of credentials perhaps")
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])


class Http:
    """The connections of one client.

    Made as the SDK makes its own (this is its `http_session_cls`), with seconds to connect and to read; None: the
    caller limits the time. Unlike the SDK's it checks host names, which aiobotocore before 3.9.0 leaves to urllib3,
    which is not there, and certificates behind a proxy.
    """

    def __init__(
        self,
        *,
        timeout: tuple[float, float | None],
        proxies: Mapping[str, str] | None,
        verify: bool | str,
        max_pool_connections: int,
        **_: Any,
    ) -> None:
        connect_s, read_s = timeout
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s)
        self._proxies = ProxyConfiguration(proxies)
        self._connector = aiohttp.TCPConnector(
            ssl=trusting(verify if isinstance(verify, str) and verify else get_cert_path(True)),
            limit=max_pool_connections,
            keepalive_timeout=KEPT_ALIVE_S,
        )
        self._posts: dict[str, Posts] = {}  # the SDK's, by address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connector.close()

    def to(self, url: URL, fixed: Mapping[str, str]) -> Posts:
        proxy = self._proxies.proxy_url_for(str(url))
        return Posts(self._connector, url, fixed, proxy=proxy, timeout=self._timeout)

    async def send(self, request: Any) -> AioAWSResponse:
        """Make the SDK's call, as it has prepared it. Raises the SDK's errors."""
        url: str = request.url
        headers = {name: _text(value) for name, value in request.headers.items() if name.lower() not in _SAID_HERE}
        try:
            if (post := self._posts.get(url)) is None:
                post = self._posts[url] = self.to(URL(url, encoded=True), {})
            answer = await post(headers, request.body or b"")
        except Exception as fault:
            raise self._in_the_sdk_s_words(fault, url) from fault
        found: Any = {name.lower(): value for name, value in answer.headers.items()}
        return AioAWSResponse(url, answer.status, found, _Read(answer.body))

    def _in_the_sdk_s_words(self, fault: Exception, url: str) -> Exception:
        """Its repeats, and `aws/faults.py`, go by these classes."""
        match fault:
            case aiohttp.ClientSSLError():
                return SSLError(endpoint_url=url, error=fault)
            case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
                proxy = mask_proxy_url(self._proxies.proxy_url_for(url))
                return ProxyConnectionError(proxy_url=proxy, error=fault)
            case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | BadStatusLine():
                return ConnectionClosedError(endpoint_url=url, error=fault)
            case aiohttp.ConnectionTimeoutError():
                return ConnectTimeoutError(endpoint_url=url, error=fault)
            case TimeoutError():
                return ReadTimeoutError(endpoint_url=url, error=fault)
            case aiohttp.ClientConnectionError() | OSError():
                return EndpointConnectionError(endpoint_url=url, error=fault)
            case _:
                return HTTPClientError(error=fault)


class _Read(NamedTuple):
    """An answer's body, as the SDK asks for it."""

    body: bytes

    async def read(self) -> bytes:
        return self.body


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


@lru_cache
def trusting(authorities: str) -> ssl.SSLContext:
    """Return a context that trusts the certificate authorities of a file, and checks host names. Raises ValueError."""
    context: ssl.SSLContext = create_urllib3_context()
    context.check_hostname = True
    try:
        context.load_verify_locations(authorities)
    except OSError as fault:
        raise ValueError(f"no certificate authorities in {authorities}: {fault}") from fault
    return context
