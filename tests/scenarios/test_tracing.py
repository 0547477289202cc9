"""Traces leave the process by OTLP, where the standard variables say; what the process does is not changed by it."""

import asyncio
import subprocess
import sys
import threading
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from dispatcher.app import within
from tests.scenarios.conftest import Run
from tests.scenarios.proxy import HOST
from tests.scenarios.world import HOME, World, requests

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def collector(exported: list[Any]) -> tuple[web.AppRunner, str]:
    async def take(request: web.Request) -> web.Response:
        exported.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response()

    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    return runner, f"http://{HOST}:{runner.addresses[0][1]}"


async def test_spans_reach_a_collector_before_the_process_ends(world: World, monkeypatch: Any) -> None:
    exported: list[ExportTraceServiceRequest] = []
    runner, endpoint = await collector(exported)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    try:
        dispatcher = await world.start()
        trace = {"traceparent": {"DataType": "String", "StringValue": f"00-{TRACE}-00f067aa0ba902b7-01"}}
        await world.send(requests(5), trace)
        await world.until_master_is_empty()
        assert await dispatcher.drain() == 0
    finally:
        await runner.cleanup()
    resources = [r for batch in exported for r in batch.resource_spans]
    spans = [span for r in resources for scope in r.scope_spans for span in scope.spans]
    ours = [span for span in spans if span.trace_id.hex() == TRACE]
    assert sorted({span.name for span in ours}) == sorted(
        ["dispatch", "decode", "route", "claim", "send", "confirm", "acknowledge"]
    )
    assert len(ours) == 5 * 7
    links = [link.span_id for span in spans if span.name == "sqs send_message_batch" for link in span.links]
    assert set(links) == {span.span_id for span in ours if span.name == "send"}
    said = {a.key: a.value.string_value for a in resources[0].resource.attributes}
    assert said["service.name"] == "dispatcher"
    assert said["cloud.region"] == HOME
    assert said["deployment.environment"] == "test"
    arrivals = await world.assert_each_once(requests(5))
    assert {arrival.text("traceparent")[3:35] for arrival in arrivals} == {TRACE}


async def test_a_collector_that_never_answers_costs_nothing_but_its_traces(world: World, monkeypatch: Any) -> None:
    connections: list[asyncio.StreamWriter] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while await reader.read(65536):
            pass

    async with await asyncio.start_server(hang, HOST, 0) as collector:
        port = collector.sockets[0].getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{HOST}:{port}")
        dispatcher = await world.start()
        await world.send(requests(20))
        await world.until_master_is_empty()
        assert await dispatcher.drain() == 0
        assert connections
        for connection in connections:
            connection.close()
    await world.assert_each_once(requests(20))


async def test_the_last_traces_are_waited_for_and_not_for_ever() -> None:
    closed: list[str] = []
    await within(60.0, lambda: closed.append("yes"))
    assert closed == ["yes"]
    never = threading.Event()
    await within(0.05, lambda: closed.append(str(never.wait())))
    assert closed == ["yes"], "it went on without it"
    never.set()


def test_without_the_extra_or_with_another_protocol_it_says_so_and_contacts_nobody(run: Run) -> None:
    settings = {
        "DISPATCHER_HOME_REGION": "us-east-1",
        "DISPATCHER_MASTER_QUEUE_URL": "http://127.0.0.1:9/000000000000/m",
        "DISPATCHER_REGIONS": '{"us-east-1": "http://127.0.0.1:9/000000000000/r"}',
        "DISPATCHER_LEDGER_TABLE": "t",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    }
    other = run("run", settings={**settings, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, on=None)
    assert other.returncode == 2
    assert "only http/protobuf is spoken" in other.stderr
    without = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None; from dispatcher.cli import main; main(['run'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", without],
        env={"PATH": "/usr/bin", **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "pip install 'regional-dispatcher[tracing]'" in ended.stderr
