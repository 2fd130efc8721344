"""The async consumer: from the type of a message to its handler."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from asgiref.sync import iscoroutinefunction
from channels import consumer
from channels.consumer import get_handler_name
from channels.layers import get_channel_layer

from ..layer import AsyncQueueChannelLayer
from ..messages.external import ExternalMessage
from . import database
from .conversation import Client, Conversation
from .sources import NOTHING, Asked, Message

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable
    from channels.consumer import _ChannelScope


class AsyncConsumer(consumer.AsyncConsumer):
    """
    A consumer whose handlers are coroutines: the behaviour of Channels', with less work for each message.

    What is different, for those who look: a `websocket.send` message from the channel layer goes to the client
    as it is; a client that is gone while something is sent to it is met by the disconnect handler, under every
    server; what the layer itself has to say (`on_loss` and the like) needs no handler; a channel that is closed
    by `overflow="close"` closes the WebSocket with 1013.
    """

    # For type checkers, which then know `exclude=`; with another BACKEND it is another layer, without one None.
    channel_layer: AsyncQueueChannelLayer
    # Of the class, because consumers need not call our __init__(), and their tests may call dispatch().
    _asyncq: Conversation | None = None

    async def __call__(
        self, scope: _ChannelScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Dispatch what the server and the channel layer bring to handlers by type, until StopConsumer."""
        self.scope = scope
        client = Client(send)
        self.base_send = client
        self._asyncq = conversation = Conversation(client, receive, scope["type"] == "websocket")
        layer = get_channel_layer(self.channel_layer_alias)
        self.channel_layer = layer  # type: ignore[assignment]
        if isinstance(layer, AsyncQueueChannelLayer):
            conversation.notices = layer.notices
        # A dispatch() of the consumer's own is to see them all.
        passes_on = type(self).dispatch is AsyncConsumer.dispatch and not hasattr(self, "websocket_send")
        if layer is None:
            await conversation.run(NOTHING, self.dispatch, passes_on)
        elif isinstance(layer, AsyncQueueChannelLayer) and _reads_as_we_do(layer):
            channel = await layer.open_channel()
            try:
                self._use(channel.name)
                await conversation.run(channel, self.dispatch, passes_on)
            finally:
                channel.close()
        else:
            self._use(await layer.new_channel())
            messages = Asked(self.channel_receive)
            try:
                await conversation.run(messages, self.dispatch, passes_on)
            finally:
                await messages.stop()
                if isinstance(layer, AsyncQueueChannelLayer) and not layer.is_closed:
                    layer.close_channel(self.channel_name)

    def _use(self, channel: str) -> None:
        self.channel_name = channel
        self.channel_receive = partial(self.channel_layer.receive, channel)  # type: ignore[assignment]

    async def dispatch(self, message: Message) -> None:
        """
        Hand a message to the handler that its type names.

        A message from outside for which there is none is counted and logged, and dropped.

        Raises:
            ValueError: there is none.
        """
        handler = getattr(self, get_handler_name(message), None)
        conversation = self._asyncq
        if isinstance(message, ExternalMessage) and not iscoroutinefunction(handler):
            handler = None  # an attribute, or a method that is not for messages
        if handler:
            if conversation is None:
                await database.close_old_connections()
            elif conversation.must_visit_database():
                await conversation.visit_database()
            await handler(message)
        elif conversation is not None and message["type"] == "websocket.send":
            await conversation.pass_on(message)
        elif isinstance(message, ExternalMessage):
            _drop(message, self.channel_layer, type(self).__name__)
        elif conversation is None or message["type"] not in conversation.notices:
            raise ValueError(f"No handler for message type {message['type']}")


def _drop(message: ExternalMessage, layer: object, reader: str) -> None:
    """Have a message that nobody handles counted, and go on."""
    if isinstance(layer, AsyncQueueChannelLayer):
        layer.drop_unhandled(message, reader)


def _reads_as_we_do(layer: AsyncQueueChannelLayer) -> bool:
    """Is `receive()` our own? Somebody's subclass may want to see every message."""
    return type(layer).receive is AsyncQueueChannelLayer.receive
