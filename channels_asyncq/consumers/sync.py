"""The sync consumer: its handlers run in the thread of Django's database code, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction
from channels import consumer
from channels.consumer import get_handler_name
from channels.db import database_sync_to_async

from ..messages.external import ExternalMessage
from .consumer import AsyncConsumer
from .conversation import Client
from .sources import Message


@database_sync_to_async
def _call(handler: Callable[[Message], None], message: Message) -> None:
    handler(message)


class SyncConsumer(AsyncConsumer, consumer.SyncConsumer):
    """
    A consumer whose handlers are functions: it behaves as that of Channels, and waits as `AsyncConsumer` does.

    Handlers run in the thread in which Channels runs them, with the database connections cleaned before and after
    each of them. Messages without a handler need no thread: above all those of type `websocket.send`.
    """

    async def dispatch(self, message: Message) -> None:
        """
        Hand a message to the handler that its type names, in its thread.

        A message from outside without a handler is counted, logged and dropped.

        Raises:
            ValueError: there is no handler.
        """
        handler = getattr(self, get_handler_name(message), None)
        if isinstance(message, ExternalMessage) and not self._is_method(handler):
            handler = None
        if handler:
            await _call(handler, message)
        else:
            await self._do_without_handler(message)

    _our_dispatch = dispatch

    def _is_method(self, handler: Any) -> bool:
        """Tell whether this is a method of the consumer, not another attribute that a type happens to name."""
        return getattr(handler, "__self__", None) is self and not iscoroutinefunction(handler)

    def _base_send_of(self, client: Client) -> Any:
        return async_to_sync(client)
