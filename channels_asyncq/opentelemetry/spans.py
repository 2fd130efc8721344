"""The spans of sends and of handled messages, in the names of OpenTelemetry's conventions for messaging."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from channels.exceptions import StopConsumer
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer

from .carrying import TracedMessage, TracedPayload, traceparent_of

SYSTEM = "channels_asyncq"
#: The `type` of the message: the handler's name. The conventions have no word for it.
MESSAGE_TYPE = "messaging.channels_asyncq.message.type"

# The PRODUCER span of the send that runs in this context.
_sending: ContextVar[Span | None] = ContextVar("channels_asyncq sending", default=None)


def _destination(name: str, *, is_group: bool) -> dict[str, Any]:
    """
    Return the attributes of a destination.

    A group is there while it has members, and the name of a specific channel is made up: both are temporary, so
    that span names do not have them.
    """
    attributes: dict[str, Any] = {"messaging.destination.name": name}
    if is_group or "!" in name:
        attributes["messaging.destination.temporary"] = True
    if not is_group and "!" in name:
        attributes["messaging.destination.anonymous"] = True
    return attributes


class Spans:
    """Makes the spans with one tracer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def _span(
        self, operation: str, kind: SpanKind, attributes: dict[str, Any], links: Sequence[Link] = ()
    ) -> Generator[Span]:
        attributes = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": operation,
            "messaging.operation.type": "process" if kind is SpanKind.CONSUMER else "send",
            **attributes,
        }
        is_temporary = "messaging.destination.temporary" in attributes
        name = operation if is_temporary else f"{operation} {attributes['messaging.destination.name']}"
        with self._tracer.start_as_current_span(
            name, None, kind, attributes, links, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except StopConsumer:
                raise  # the way in which a consumer ends
            except Exception as error:
                span.record_exception(error)
                span.set_attribute("error.type", f"{type(error).__module__}.{type(error).__qualname__}")
                span.set_status(Status(StatusCode.ERROR, str(error)))
                raise

    @contextmanager
    def sending(self, operation: str, destination: object, *, is_group: bool = False) -> Generator[Span]:
        """Make the PRODUCER span of a send. What `describe()` gets meanwhile is the message of this send."""
        attributes = _destination(str(destination), is_group=is_group)
        with self._span(operation, SpanKind.PRODUCER, attributes) as span:
            token = _sending.set(span)
            try:
                yield span
            finally:
                _sending.reset(token)

    @contextmanager
    def processing(self, message: TracedMessage, producer: trace.SpanContext) -> Generator[None]:
        """Make the CONSUMER span of a message; it is linked to the span of the sender."""
        name = message.destination
        attributes = _destination(name, is_group="!" not in name and not message.is_from_queue)
        attributes[MESSAGE_TYPE] = str(message.get("type"))
        with self._span("process", SpanKind.CONSUMER, attributes, [Link(producer)]):
            yield


def describe(payload: TracedPayload, span: Span | None = None) -> None:
    """Give a message the context of the span by which it is sent, and the span the attributes of the message."""
    span = span or _sending.get()
    if span is not None:
        span.set_attribute("messaging.message.body.size", len(payload))
        span.set_attribute(MESSAGE_TYPE, payload.message_type)
        payload.traceparent = traceparent_of(span)
