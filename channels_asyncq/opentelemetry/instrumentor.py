"""The instrumentor: it wraps methods of the package and of Channels, and puts them back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from channels import consumer as of_channels
from opentelemetry import trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from .. import __version__
from ..bus.memory import bus as memory_bus
from ..bus.redis.sender import Sender
from ..consumers.consumer import AsyncConsumer
from ..consumers.conversation import Conversation
from ..consumers.sync import SyncConsumer
from ..layer import AsyncQueueChannelLayer
from ..messages.envelopes import Envelope
from ..session import sending
from ..session.decoding import Decoder
from ..session.dispatch import PreparedGroupSend, PreparedSend
from .carrying import TracedMessage, TracedPayload, is_from_queue, mark, producer_of, with_traceparent
from .spans import Spans, describe

# The newest version of the conventions whose names are used.
SCHEMA = "https://opentelemetry.io/schemas/1.37.0"

Function = Callable[..., Any]


class Wrapped(NamedTuple):
    """A function that is wrapped: the class or module that has it, its name, and what makes the wrapper."""

    owner: Any
    name: str
    wrap: Callable[[Function, Spans], Function]


# Sends


def _wrap_send(original: Function, spans: Spans) -> Function:
    async def send(layer: Any, channel: str, *args: Any, **kwargs: Any) -> None:
        with spans.sending(original.__name__, channel):
            await original(layer, channel, *args, **kwargs)

    return send


def _wrap_group_send(original: Function, spans: Spans) -> Function:
    async def group_send(layer: Any, group: str, *args: Any, **kwargs: Any) -> None:
        with spans.sending("group_send", group, is_group=True):
            await original(layer, group, *args, **kwargs)

    return group_send


def _wrap_encode(original: Function, spans: Spans) -> Function:
    def encode(layer: Any, message: dict[str, Any]) -> bytes:
        payload = TracedPayload(original(layer, message))
        payload.message_type = str(message.get("type"))
        describe(payload)
        return payload

    return encode


def _wrap_prepared(original: Function, spans: Spans) -> Function:
    """A send of sync code: its span begins when it is sent, which may be after the commit."""

    def send(prepared: PreparedSend | PreparedGroupSend) -> None:
        is_group = isinstance(prepared, PreparedGroupSend)
        with spans.sending("group_send" if is_group else "send", prepared.target, is_group=is_group) as span:
            if isinstance(prepared.payload, TracedPayload):
                describe(prepared.payload, span)
            original(prepared)

    return send


def _wrap_sender(original: Function, spans: Spans) -> Function:
    """To other processes the context goes with the names."""

    def send(sender: Sender, route: Any, names: bytes, payload: bytes) -> Any:
        if isinstance(payload, TracedPayload) and payload.traceparent:
            names = with_traceparent(names, payload.traceparent)
        return original(sender, route, names, payload)

    return send


def _wrap_envelope(original: Function, spans: Spans) -> Function:
    """Inside the process the context goes with the envelope."""

    def wrapped(*args: Any, **kwargs: Any) -> Envelope:
        envelope: Envelope = original(*args, **kwargs)
        mark(envelope)
        return envelope

    return wrapped


# Receivers


def _wrap_message_of(original: Function, spans: Spans) -> Function:
    def message_of(decoder: Decoder, envelope: Envelope) -> dict[str, Any]:
        if envelope.excluded and (producer := producer_of(envelope)) is not None:
            message = envelope.message
            if message is None:
                message = decoder.codec.decode_own(envelope.payload)
            if type(message) is dict:
                envelope.message = TracedMessage.of(
                    message, producer, envelope.target, is_from_queue(envelope)
                )
        found: dict[str, Any] = original(decoder, envelope)
        return found

    return message_of


def _wrap_dispatch(original: Function, spans: Spans) -> Function:
    """A handler of a consumer, or what stands for one."""

    async def dispatch(consumer: Any, message: dict[str, Any]) -> None:
        with _processing(message, spans):
            await original(consumer, message)

    return dispatch


@contextmanager
def _processing(message: dict[str, Any], spans: Spans) -> Generator[None]:
    producer = message.take_producer() if isinstance(message, TracedMessage) else None
    if producer is None:
        yield
    else:
        assert isinstance(message, TracedMessage)
        with spans.processing(message, producer):
            yield


_WRAPPED = (
    Wrapped(AsyncQueueChannelLayer, "send", _wrap_send),
    Wrapped(AsyncQueueChannelLayer, "send_wait", _wrap_send),
    Wrapped(AsyncQueueChannelLayer, "group_send", _wrap_group_send),
    Wrapped(AsyncQueueChannelLayer, "_encode", _wrap_encode),
    Wrapped(PreparedSend, "send", _wrap_prepared),
    Wrapped(PreparedGroupSend, "send", _wrap_prepared),
    Wrapped(Sender, "send", _wrap_sender),
    Wrapped(sending, "local_envelope", _wrap_envelope),
    Wrapped(memory_bus, "_wrapped", _wrap_envelope),
    Wrapped(Decoder, "message_of", _wrap_message_of),
    Wrapped(of_channels.AsyncConsumer, "dispatch", _wrap_dispatch),
    Wrapped(of_channels.SyncConsumer, "dispatch", _wrap_dispatch),
    Wrapped(AsyncConsumer, "dispatch", _wrap_dispatch),
    Wrapped(SyncConsumer, "dispatch", _wrap_dispatch),
    Wrapped(Conversation, "pass_on", _wrap_dispatch),
)


class ChannelsAsyncqInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # untyped
    """
    Switches tracing on and off, in the way of OpenTelemetry's other instrumentors.

    `instrument()` takes a `tracer_provider`; without one it uses the global one. `opentelemetry-instrument` finds
    the class by its entry point. Layers and consumers may be there already. Without it, no code of OpenTelemetry
    runs or is imported.
    """

    _spans: Spans | None = None
    _originals: tuple[Any, ...] = ()

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return nothing: this package is what is instrumented."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        tracer = trace.get_tracer("channels_asyncq", __version__, kwargs.get("tracer_provider"), SCHEMA)
        self._spans = spans = Spans(tracer)
        # Not by getattr(), which would bind a handler of sync_to_async().
        self._originals = tuple(vars(owner)[name] for owner, name, _ in _WRAPPED)
        for (owner, name, wrap), original in zip(_WRAPPED, self._originals, strict=True):
            setattr(owner, name, functools.wraps(original, updated=())(wrap(original, spans)))

    def _uninstrument(self, **kwargs: Any) -> None:
        for (owner, name, _), original in zip(_WRAPPED, self._originals, strict=True):
            setattr(owner, name, original)
        self._spans, self._originals = None, ()

    def processing(self, message: dict[str, Any]) -> AbstractContextManager[None]:
        """Return the context manager of `processing()`."""
        return nullcontext() if self._spans is None else _processing(message, self._spans)


def processing(message: dict[str, Any]) -> AbstractContextManager[None]:
    """
    Return a context manager that makes the CONSUMER span of a message, for code that calls `receive()` itself.

    Consumers need it not. It makes none if tracing is off, if the sender was not traced, and for a message that
    has had its span.
    """
    return ChannelsAsyncqInstrumentor().processing(message)
