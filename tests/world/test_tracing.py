"""Traces of whole dispatchers, kept in memory by OpenTelemetry's own exporter."""

import asyncio
import json
from collections.abc import Iterator, Mapping

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from dispatcher.tracing import Tracing
from tests.fakes.aws import Stored
from tests.virtual_time import run_virtual
from tests.world.wire import Kind, Spell
from tests.world.world import World, story

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
STAGES = ["decode", "route", "claim", "send", "confirm", "acknowledge"]


@pytest.fixture
def kept() -> Iterator[InMemorySpanExporter]:
    yield InMemorySpanExporter()


def tracing(kept: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(1.0)))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return Tracing(provider)


def put(world: World, request_id: str, trace: dict[str, str], system: Mapping[str, object] | None = None) -> None:
    body = json.dumps({"request_id": request_id, "model_name": "m", "input_data_url": "s3://bucket/key"})
    attributes = {name: {"DataType": "String", "StringValue": value} for name, value in trace.items()}
    world.master.put(body, attributes, system or {})


async def arrival(world: World) -> Stored:
    """The first message that reaches a regional queue, before a worker takes it."""
    while True:
        for queue in world.regional.values():
            for message in queue.messages.values():
                return message
        await asyncio.sleep(0.01)


def of(kept: InMemorySpanExporter, trace_id: str) -> list[ReadableSpan]:
    """The spans of a trace, in the order of their starts."""
    spans = [span for span in kept.get_finished_spans() if format_trace_id(span.context.trace_id) == trace_id]
    return sorted(spans, key=lambda span: span.start_time or 0)


def test_a_delivery_goes_on_with_the_trace_of_its_client_a_span_for_each_stage(kept: InMemorySpanExporter) -> None:
    async def main() -> None:
        async with story() as here:
            here.tracing = tracing(kept)
            here.start()
            put(here, "r", {"traceparent": TRACEPARENT, "tracestate": "vendor=1"})
            arrived = await arrival(here)
            await here.settle()
            assert arrived.attributes["traceparent"]["StringValue"] == TRACEPARENT, "it travels on"

    run_virtual(main())
    whole, *stages = of(kept, TRACE)
    assert (whole.name, whole.kind) == ("dispatch", SpanKind.CONSUMER)
    assert whole.parent
    assert format_span_id(whole.parent.span_id) == PARENT
    assert whole.attributes
    assert whole.attributes["dispatcher.outcome"] == "dispatched"
    assert [span.name for span in stages] == STAGES
    assert {span.parent.span_id for span in stages if span.parent} == {whole.context.span_id}
    said = {span.name: dict(span.attributes or {}) for span in stages}
    assert said["decode"]["dispatcher.request_id"] == "r"
    assert said["route"]["dispatcher.region"] == said["send"]["dispatcher.region"]
    assert said["claim"]["dispatcher.claim"] == "claimed"


def test_a_batched_call_is_linked_to_the_stage_of_each_that_waits_for_it(kept: InMemorySpanExporter) -> None:
    async def main() -> None:
        async with story() as here:
            here.tracing = tracing(kept)
            for number in range(10):
                put(here, f"r{number}", {"traceparent": f"00-{number + 1:032x}-{PARENT}-01"})
            here.start()
            await here.settle()

    run_virtual(main())
    spans = {span.context.span_id: span for span in kept.get_finished_spans()}
    batches = [span for span in spans.values() if span.kind is SpanKind.CLIENT]
    by_operation = {"batch_execute_statement": {"claim", "confirm"}, "send_message_batch": {"send"}}
    for operation, stages in by_operation.items():
        calls = [span for span in batches if span.name.endswith(operation)]
        linked = [spans[link.context.span_id].name for span in calls for link in span.links]
        assert set(linked) == stages
        assert len(linked) == 10 * len(stages), "every delivery's stage is linked to exactly one call"
        assert len(calls) < len(linked), "and calls are shared"
        assert all((span.attributes or {})["messaging.batch.message_count"] == len(span.links) for span in calls)
        assert all(span.parent is None for span in calls), "a call belongs to no one of them"


def test_x_ray_s_header_is_a_parent_too(kept: InMemorySpanExporter) -> None:
    header = f"Root=1-{TRACE[:8]}-{TRACE[8:]};Sampled=1; Parent={PARENT}"
    system = {"AWSTraceHeader": {"DataType": "String", "StringValue": header}}

    async def main() -> None:
        async with story() as here:
            here.tracing = tracing(kept)
            here.start()
            put(here, "r", {}, system)
            arrived = await arrival(here)
            await here.settle()
            assert arrived.system == system, "it travels on"

    run_virtual(main())
    assert [span.name for span in of(kept, TRACE)] == ["dispatch", *STAGES]


@pytest.mark.parametrize(
    "unsampled",
    [
        {"traceparent": TRACEPARENT[:-1] + "0"},
        {"AWSTraceHeader": f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT};Sampled=0"},
    ],
    ids=["w3c", "x-ray"],
)
def test_what_the_client_does_not_sample_is_not_sampled_here(
    kept: InMemorySpanExporter, unsampled: dict[str, str]
) -> None:
    async def main() -> None:
        async with story() as here:
            here.tracing = tracing(kept)
            here.start()
            (kind, value), *_ = unsampled.items()
            system = {kind: {"DataType": "String", "StringValue": value}} if kind == "AWSTraceHeader" else {}
            put(here, "r", {} if system else unsampled, system)
            await here.settle()

    run_virtual(main())
    assert list(kept.get_finished_spans()) == [], "nor are the calls that are made for it alone"


def test_a_trace_that_cannot_be_read_is_none_and_a_duplicate_says_so(kept: InMemorySpanExporter) -> None:
    async def main() -> None:
        async with story() as here:
            here.tracing = tracing(kept)
            here.start()
            put(here, "r", {"traceparent": "nonsense"})
            await asyncio.sleep(5)
            put(here, "r", {"traceparent": TRACEPARENT}, {"AWSTraceHeader": {"StringValue": "Root=1-;" * 20_000}})
            await here.settle()

    run_virtual(main())
    whole, _, _, claim, *rest = of(kept, TRACE)
    assert (whole.attributes or {})["dispatcher.outcome"] == "duplicate"
    assert (claim.name, (claim.attributes or {})["dispatcher.claim"]) == ("claim", "duplicate")
    assert [span.name for span in rest] == ["acknowledge"]


def test_faults_are_in_the_trace_and_rejects_have_their_reason(kept: InMemorySpanExporter) -> None:
    async def main() -> None:
        async with story() as here:
            here.tracing = tracing(kept)
            here.start()
            await asyncio.sleep(2)
            now = here.aws.now()
            here.weather(Spell(Kind.RESET, now, now + 1, "send_message_batch", ""))
            put(here, "r", {"traceparent": TRACEPARENT})
            await asyncio.sleep(5)
            here.master.put(
                "no JSON", {"traceparent": {"DataType": "String", "StringValue": f"00-{'1' * 32}-{PARENT}-01"}}
            )
            await here.settle()

    run_virtual(main())
    calls = [span for span in kept.get_finished_spans() if span.name == "sqs send_message_batch"]
    failed = [span for span in calls if span.status.status_code is StatusCode.ERROR]
    assert failed
    assert all(event.name == "exception" for span in failed for event in span.events)
    whole, decode, *rest = of(kept, "1" * 32)
    assert (whole.attributes or {})["dispatcher.outcome"] == "rejected"
    assert decode.status.status_code is StatusCode.ERROR
    assert [span.name for span in rest] == ["reject", "acknowledge"]
    assert "not JSON" in str((rest[0].attributes or {})["dispatcher.rejected_because"])
