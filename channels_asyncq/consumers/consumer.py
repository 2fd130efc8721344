"""The async consumer: from the type of a message to its handler."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction
from channels import consumer
from channels.consumer import get_handler_name
from channels.layers import get_channel_layer

from ..layer import AsyncQueueChannelLayer
from ..messages.closing import CLOSE, Close, close_of
from ..messages.external import ExternalMessage
from ..session.open_channel import OpenChannel
from . import database
from .admission import limited_events
from .conversation import Client, Conversation
from .limits import Limits, RateAction, require_used
from .resuming import FollowedGroups
from .sources import NOTHING, Message, ReceiveSource

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable
    from channels.consumer import _ChannelScope


class AsyncConsumer(consumer.AsyncConsumer):
    """
    A consumer whose handlers are coroutines: it behaves as that of Channels, with less work for each message.

    The differences: a `websocket.send` message from the channel layer goes to the client as it is, and a
    `websocket.close` message ends the connection; if the client has gone during a send, the disconnect handler
    runs, under every server; notices of the layer itself (`on_loss` and the like) need no handler; a channel that
    is closed by `overflow="close"` closes the WebSocket with 1013.
    """

    # For type checkers, which then know `exclude=`. With another BACKEND it is another layer; without one, None.
    channel_layer: AsyncQueueChannelLayer

    #: How many frames a client may send, such as "20/s", "100/m" or "1000/h"; None for any number.
    rate: str | None = None
    #: How many frames may come at once after a quiet time. None: those of one second, at least one.
    burst: int | None = None
    #: What happens to a client that is faster: "wait" (nothing more is read from it), "drop" (its frames are
    #: dropped) or "close" (it is disconnected with 4008).
    rate_action: RateAction = "wait"
    #: The most bytes of a frame. A client that sends more is disconnected with 1009 (4009 under Daphne).
    max_frame: int | None = None
    #: Seconds without a frame from the client after which it is disconnected with 4408.
    idle_timeout: float | None = None
    #: The most groups that the consumer's channel is in, without those of AuthGroups. `group_add()` of another
    #: one raises TooManyGroups.
    max_groups: int | None = 1000

    # On the class, because consumers need not call our __init__(), and their tests may call dispatch().
    _asyncq: Conversation | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse limits that are wrong. Raises as `Limits.of()`."""
        super().__init_subclass__(**arguments)
        Limits.of(cls)

    async def __call__(
        self, scope: _ChannelScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Dispatch events of the server and messages of the layer to handlers by type, until StopConsumer."""
        self.scope = scope
        client = Client(send)
        self.base_send = client
        layer = get_channel_layer(self.channel_layer_alias)
        self.channel_layer = layer  # type: ignore[assignment]
        is_websocket = scope["type"] == "websocket"
        events = self._limited(receive, send) if is_websocket else ReceiveSource(receive)
        self._asyncq = conversation = Conversation(client, events, is_websocket)
        if isinstance(layer, AsyncQueueChannelLayer):
            conversation.notices = layer.notices
        # A consumer that overrides dispatch() sees every message.
        passes_on = type(self).dispatch is AsyncConsumer.dispatch and not hasattr(self, "websocket_send")
        if layer is None:
            await conversation.run(self, NOTHING, passes_on)
        elif isinstance(layer, AsyncQueueChannelLayer) and _has_own_receive(layer):
            source = await self._open_source(layer)
            try:
                self._use(source.name)
                await conversation.run(self, source, passes_on)
            finally:
                source.close()
        else:
            self._use(await layer.new_channel())
            messages = ReceiveSource(self.channel_receive)
            try:
                await conversation.run(self, messages, passes_on)
            finally:
                await messages.stop()
                if isinstance(layer, AsyncQueueChannelLayer) and not layer.is_closed:
                    layer.close_channel(self.channel_name)

    def _limited(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> ReceiveSource:
        """Return the events of a WebSocket, within the limits if there are any."""
        limits = Limits.of(self)  # of the object: its __init__() may have set some
        require_used(self, "rate", burst=None, rate_action="wait")
        if not limits.concern_frames:
            return ReceiveSource(receive)
        layer = self.channel_layer if isinstance(self.channel_layer, AsyncQueueChannelLayer) else None
        return limited_events(limits, receive, send, layer, type(self).__name__)

    async def _open_source(self, layer: AsyncQueueChannelLayer) -> OpenChannel | FollowedGroups:
        """Return the source of the messages of the layer, with a channel of its own."""
        channel = await layer.open_channel()
        channel.obey_close()
        channel.read_by(type(self))
        return channel

    def _use(self, channel: str) -> None:
        self.channel_name = channel
        self.channel_receive = partial(self.channel_layer.receive, channel)  # type: ignore[assignment]
        if self.max_groups is not None and isinstance(self.channel_layer, AsyncQueueChannelLayer):
            self.channel_layer.limit_groups(channel, self.max_groups, f"max_groups of {type(self).__name__}")

    async def _asyncq_close(self, conversation: Conversation, close: Close) -> None:
        """Close the client's connection, because a message of the layer says so."""
        await conversation.close(close)

    async def dispatch(self, message: Message) -> None:
        """
        Hand a message to the handler that its type names.

        A message from outside without a handler is counted, logged and dropped.

        Raises:
            ValueError: there is no handler.
        """
        handler = getattr(self, get_handler_name(message), None)
        conversation = self._asyncq
        if isinstance(message, ExternalMessage) and not iscoroutinefunction(handler):
            handler = None  # the type names an attribute, or a method that handles no messages
        if handler:
            if conversation is None:
                await database.close_old_connections()
            elif conversation.must_visit_database():
                await conversation.visit_database()
            await handler(message)
        elif conversation is not None and message["type"] == "websocket.send":
            await conversation.pass_on(message)
        elif conversation is not None and message["type"] == CLOSE:
            await self._asyncq_close(conversation, close_of(message))
        elif isinstance(message, ExternalMessage):
            _drop(message, self.channel_layer, type(self).__name__)
        elif conversation is None or message["type"] not in conversation.notices:
            raise ValueError(f"No handler for message type {message['type']}")


def _drop(message: ExternalMessage, layer: object, reader: str) -> None:
    """Count a message that has no handler, and go on."""
    if isinstance(layer, AsyncQueueChannelLayer):
        layer.drop_unhandled(message, reader)


def _has_own_receive(layer: AsyncQueueChannelLayer) -> bool:
    """Tell whether `receive()` is our own: a subclass that overrides it is to see every message."""
    return type(layer).receive is AsyncQueueChannelLayer.receive
