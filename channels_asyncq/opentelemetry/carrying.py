"""How a message carries the span of its sender: in the payload, then in the envelope, then in the dict."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..messages.envelopes import FROM_QUEUE, Envelope

_FIELD = "traceparent"
# The context is written among the excluded channels. No channel has such a name, because of the "=". So processes
# that do not trace, and older releases, pass over it.
_MARK = f"{_FIELD}="
_propagator = TraceContextTextMapPropagator()


class TracedPayload(bytes):
    """An encoded message on its way out. `traceparent` is that of its PRODUCER span, empty without one."""

    message_type: str = ""
    traceparent: str = ""


class TracedMessage(dict[str, Any]):
    """
    A message as receivers get it, that was sent in a span.

    `producer` is the context of that span. `take_producer()` takes it, so that each message has one CONSUMER
    span. `destination` is the group or channel it was sent to, and `is_from_queue` tells whether that is a normal
    channel.
    """

    __slots__ = ("destination", "is_from_queue", "producer")

    destination: str
    is_from_queue: bool
    producer: trace.SpanContext | None

    @classmethod
    def of(
        cls,
        message: dict[str, Any],
        producer: trace.SpanContext | None,
        destination: str,
        is_from_queue: bool,
    ) -> TracedMessage:
        traced = cls(message)
        traced.producer, traced.destination, traced.is_from_queue = producer, destination, is_from_queue
        return traced

    def copy(self) -> TracedMessage:
        return TracedMessage.of(self, self.producer, self.destination, self.is_from_queue)

    def take_producer(self) -> trace.SpanContext | None:
        producer, self.producer = self.producer, None
        return producer


def traceparent_of(span: trace.Span) -> str:
    """Return the context of a span as text. It is empty if the span is not recorded: nothing could link to it."""
    if not span.is_recording():
        return ""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(span))
    return carrier.get(_FIELD, "")


def with_traceparent(names: bytes, traceparent: str) -> bytes:
    """Return names by `pack_names()` with this context among the excluded channels."""
    separator = b"" if len(names) == 1 + names[0] else b","
    return names + separator + (_MARK + traceparent).encode()


def mark(envelope: Envelope) -> None:
    """Move the context from the payload to the excluded channels. The payload is bytes again, as codecs want."""
    payload = envelope.payload
    if isinstance(payload, TracedPayload):
        envelope.payload = bytes(payload)
        if payload.traceparent:
            envelope.excluded = (*envelope.excluded, _MARK + payload.traceparent)


def producer_of(envelope: Envelope) -> trace.SpanContext | None:
    """Return the context of the span by which a message was sent; None without one."""
    for name in envelope.excluded:
        if name.startswith(_MARK):
            context = _propagator.extract({_FIELD: name.removeprefix(_MARK)})
            producer = trace.get_current_span(context).get_span_context()
            return producer if producer.is_valid else None
    return None


def is_from_queue(envelope: Envelope) -> bool:
    """Tell whether a message comes from a normal channel, and not from a group or to a specific channel."""
    return bool(envelope.flags & FROM_QUEUE)
