"""Traces, by OpenTelemetry: a span for each delivery, one for each stage of its way, one for each batched call.

Imported only where traces are wanted: OpenTelemetry is an extra (`regional-dispatcher[tracing]`). Names and attributes
follow its semantic conventions for messaging.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from dispatcher import __version__
from dispatcher.inflight import Flight
from dispatcher.lanes.lane import mates
from dispatcher.model import Choice, Claimed, Delivery, Duplicate, Held, Message, Outcome, Region
from dispatcher.pipeline import Going, Pipeline, Sent, State

_ROOT, _PARENT = re.compile(r"1-([0-9a-f]{8})-([0-9a-f]{24})"), re.compile(r"[0-9a-f]{16}")
"""AWS X-Ray's header: its ids are those of W3C, written otherwise (X-Ray developer guide, "Tracing header")."""


class Tracing:
    """`provider`: where the spans go. Leave the process by `close`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("dispatcher", __version__)

    @classmethod
    def by_otlp(cls, home: Region, revision: str) -> "Tracing":
        """To where the standard OTEL_… variables say; they also say what is sampled."""
        known = {"service.name": "dispatcher", "service.version": __version__, "cloud.region": home}
        ours = Resource.create({**known, "vcs.ref.head.revision": revision})
        resource = ours.merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # `close` does it
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def close(self) -> None:
        """Export what is left; takes as long as that takes."""
        self._provider.shutdown()

    @contextmanager
    def delivery(self, delivery: Delivery) -> Iterator[Span]:
        """The way of one delivery, under the trace of whoever sent the message."""
        attributes: dict[str, Any] = {
            "messaging.system": "aws_sqs",
            "messaging.operation.type": "process",
            "messaging.operation.name": "dispatch",
            "messaging.message.id": delivery.message_id,
            "dispatcher.receives": delivery.receives,
        }
        with self._tracer.start_as_current_span(
            "dispatch", _parent(delivery), SpanKind.CONSUMER, attributes=attributes
        ) as span:
            yield span

    @contextmanager
    def stage(self, name: str) -> Iterator[Span]:
        """One stage of it."""
        with self._tracer.start_as_current_span(name) as span:
            yield span

    @contextmanager
    def call(self, service: str, operation: str, region: Region) -> Iterator[None]:
        """A call to AWS. One that was made for deliveries has a span of its own, with a link to the stage of each."""
        links = [Link(waiting) for waiting in map(_span_of, mates.get()) if waiting.is_valid]
        if not any(link.context.trace_flags.sampled for link in links):
            yield
            return
        attributes: dict[str, Any] = {
            "rpc.system": "aws-api",
            "rpc.service": service,
            "rpc.method": operation,
            "cloud.region": region,
            "messaging.batch.message_count": len(links),
        }
        with self._tracer.start_as_current_span(
            f"{service} {operation}", context.Context(), SpanKind.CLIENT, attributes=attributes, links=links
        ):
            yield


@dataclass(frozen=True, slots=True)
class TracedPipeline(Pipeline):
    """The path with a span around each stage. What it does is `pipeline.py`'s alone."""

    tracing: Tracing = field(kw_only=True)

    def sort(self, flights: Sequence[Flight]) -> tuple[Sequence[Sequence[Going[Choice]]], Sequence[Flight]]:
        return [], flights  # each has a trace of its own

    async def carry(self, flight: Flight, state: State = None) -> Outcome:
        with self.tracing.delivery(flight.delivery) as span:
            outcome = await Pipeline.carry(self, flight, state)
            span.set_attribute("dispatcher.outcome", outcome)
            return outcome

    def _decode(self, flight: Flight) -> Message:
        with self.tracing.stage("decode") as span:
            message = Pipeline._decode(self, flight)
            span.set_attribute("dispatcher.request_id", message.request_id)
            return message

    async def _route(self, flight: Flight, message: Message) -> Choice:
        with self.tracing.stage("route") as span:
            choice = await Pipeline._route(self, flight, message)
            span.set_attributes({"dispatcher.region": choice.region, "dispatcher.policy": choice.policy})
            return choice

    async def _claim(
        self, flight: Flight, message: Message, choice: Choice, *, taken: bool = False
    ) -> Claimed | Duplicate | Held:
        with self.tracing.stage("claim") as span:
            answer = await Pipeline._claim(self, flight, message, choice, taken=taken)
            span.set_attribute("dispatcher.claim", type(answer).__name__.lower())
            return answer

    async def _send(
        self, flight: Flight, message: Message, claim: Claimed, fault: Exception | None = None
    ) -> Sent | Held | None:
        with self.tracing.stage("send") as span:
            sent = await Pipeline._send(self, flight, message, claim, fault)
            if isinstance(sent, Sent):
                span.set_attributes(
                    {"dispatcher.region": sent.claim.region, "dispatcher.sqs_message_id": sent.sqs_message_id}
                )
            return sent

    async def _confirm(self, flight: Flight, sent: Sent) -> None:
        with self.tracing.stage("confirm"):
            await Pipeline._confirm(self, flight, sent)

    async def _acknowledge(self, flight: Flight) -> None:
        with self.tracing.stage("acknowledge"):
            await Pipeline._acknowledge(self, flight)

    async def _reject(self, flight: Flight, reason: str) -> Outcome:
        with self.tracing.stage("reject") as span:
            span.set_attribute("dispatcher.rejected_because", reason)
            return await Pipeline._reject(self, flight, reason)


def _span_of(waiting: Context) -> SpanContext:
    return waiting.run(trace.get_current_span).get_span_context()


def _parent(delivery: Delivery) -> context.Context:
    """Return the context that came with the message: W3C's in its attributes, or X-Ray's header."""
    carrier = {name.lower(): a.value for name, a in delivery.attributes.items() if isinstance(a.value, str)}
    if delivery.trace_header:
        carrier["x-amzn-trace-id"] = delivery.trace_header  # for OTEL_PROPAGATORS=xray
    found = propagate.extract(carrier, context.Context())
    if trace.get_current_span(found).get_span_context().is_valid:
        return found
    if parent := _xray(delivery.trace_header):
        return trace.set_span_in_context(NonRecordingSpan(parent), context.Context())
    return found


def _xray(header: str | None) -> SpanContext | None:
    parts = dict(part.strip().partition("=")[::2] for part in (header or "").split(";"))
    root, parent = _ROOT.fullmatch(parts.get("Root", "")), parts.get("Parent", "")
    if not (root and _PARENT.fullmatch(parent)):
        return None
    flags = TraceFlags(TraceFlags.SAMPLED if parts.get("Sampled") == "1" else TraceFlags.DEFAULT)
    return SpanContext(int(root[1] + root[2], 16), int(parent, 16), is_remote=True, trace_flags=flags)
