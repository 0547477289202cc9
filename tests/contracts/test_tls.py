"""Clients must refuse a server whose certificate is trusted but made out to another host.

aiobotocore before 3.9.0 sets the certificate bundle and leaves the check of the host name to urllib3, which it does
not use, and behind a proxy it checks nothing: without our own (`aws/posts.py`) anybody could play AWS.
"""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp.web
import pytest
from aiobotocore.session import get_session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dispatcher.aws.clients import Clients
from dispatcher.clock import Clock
from dispatcher.errors import Cause, RefusedError
from dispatcher.model import AwsClient, Region
from dispatcher.telemetry.metrics import Metrics

REGION = Region("us-east-1")


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that the SDK is told to trust."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def bundle(self) -> Path:
        return self.folder / "ca.pem"

    def server_context(self, *names: x509.GeneralName) -> ssl.SSLContext:
        """Return what a server needs to show a certificate made out to these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder("server", issuer=self.certificate.subject, key=key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        chain, private = self.folder / f"{key.public_key().public_numbers().x}.pem", self.folder / "key.pem"
        chain.write_bytes(_pem(certificate))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, private)
        return context


def _builder(name: str, *, issuer: x509.Name | None, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _authority(folder: Path) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder("test authority", issuer=None, key=key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    authority = Authority(folder, key, certificate)
    authority.bundle.write_bytes(_pem(certificate))
    return authority


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = _authority(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(made.bundle))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    return made


@asynccontextmanager
async def _serving(context: ssl.SSLContext) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve SQS's JSON on loopback; yield the endpoint and the operations that were asked for."""
    asked: list[str] = []

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.Response:
        asked.append(request.headers.get("X-Amz-Target", ""))
        return aiohttp.web.json_response({"QueueUrls": []}, content_type="application/x-amz-json-1.0")

    app = aiohttp.web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]  # aiohttp tells the port nowhere else
    try:
        yield f"https://localhost:{port}", asked
    finally:
        await runner.cleanup()


@pytest.fixture(params=AwsClient)
def kind(request: pytest.FixtureRequest) -> AwsClient:
    return AwsClient(request.param)


async def _receive(kind: AwsClient) -> Any:
    async with Clients(Clock(), Metrics.unread(), kind=kind) as clients:
        call = await clients.open("sqs", REGION, pool=1, attempts=1)
        return await call("receive_message", QueueUrl="queue")


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName("other.example")],
        [x509.DNSName("*.example"), x509.DNSName("localhost.example")],
        [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))],
    ],
    ids=["another host", "near misses", "the address, not the name"],
)
async def test_a_trusted_certificate_for_another_host_is_refused(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, kind: AwsClient, names: list[x509.GeneralName]
) -> None:
    async with _serving(authority.server_context(*names)) as (endpoint, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(RefusedError) as refusal:
            await _receive(kind)
        assert refusal.value.cause is Cause.UNREACHABLE, "no request was written: definite"
        assert not asked, "not even a signed request may reach it"


async def test_a_certificate_for_the_very_host_is_accepted(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, kind: AwsClient
) -> None:
    async with _serving(authority.server_context(x509.DNSName("localhost"))) as (endpoint, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        await _receive(kind)
        assert asked == ["AmazonSQS.ReceiveMessage"]


@pytest.mark.usefixtures("authority")
async def test_a_certificate_of_an_unknown_authority_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: AwsClient, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    stranger = _authority(elsewhere)
    async with _serving(stranger.server_context(x509.DNSName("localhost"))) as (endpoint, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(RefusedError):
            await _receive(kind)
        assert not asked


@asynccontextmanager
async def _tunnel() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A proxy that knows CONNECT; yield its address and what it was asked."""
    asked: list[bytes] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while some := await reader.read(65536):
                writer.write(some)
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        host, _, port = asked[-1].split()[1].decode().partition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pipe(reader, back), pipe(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


@pytest.mark.parametrize(("name", "refused"), [("localhost", False), ("other.example", True)])
async def test_certificates_are_checked_behind_a_proxy_too(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, kind: AwsClient, name: str, refused: bool
) -> None:
    """aiobotocore 2.25.1 checks none there."""
    async with _serving(authority.server_context(x509.DNSName(name))) as (endpoint, asked), _tunnel() as (proxy, came):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "")
        if refused:
            with pytest.raises(RefusedError):
                await _receive(kind)
        else:
            await _receive(kind)
        assert came, "the proxy was not asked"
        assert asked == ([] if refused else ["AmazonSQS.ReceiveMessage"])


@pytest.mark.parametrize("service", ["sqs", "dynamodb"])
async def test_every_service_checks(authority: Authority, monkeypatch: pytest.MonkeyPatch, service: Any) -> None:
    operations: dict[str, Callable[[], str]] = {"sqs": lambda: "list_queues", "dynamodb": lambda: "list_tables"}
    async with _serving(authority.server_context(x509.DNSName("other.example"))) as (endpoint, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        async with Clients(Clock(), Metrics.unread()) as clients:
            call = await clients.open(service, REGION, pool=1, attempts=2)
            with pytest.raises(RefusedError):
                await call(operations[service]())
        assert not asked


async def test_the_hole_is_real_in_the_sdk_that_we_pin(authority: Authority) -> None:
    """Should this ever fail, the SDK has been mended: then `Http` need not stand in for it, and this test can go."""
    async with _serving(authority.server_context(x509.DNSName("other.example"))) as (endpoint, asked):
        async with get_session().create_client("sqs", region_name=REGION, endpoint_url=endpoint) as client:
            await client.list_queues()
        assert asked == ["AmazonSQS.ListQueues"], "a server for another host got a signed request"
