from __future__ import annotations

from typing import Any

from channels.consumer import AsyncConsumer
from channels.db import database_sync_to_async

from channels_asyncq import DeliveryUnknown, LayerUnavailable
from chat.models import Tally
from chat.rules import group_of, is_room


class WordCounter(AsyncConsumer):
    """
    Counts words for all rooms, in a process of its own: `manage.py runworker wordcount`.

    Start as many as you like: each message of the channel reaches one of them. A message names a room only. The
    database knows which messages are not counted yet. So a lost or repeated message miscounts nothing.
    """

    async def count_words(self, message: dict[str, Any]) -> None:
        room = message.get("room")
        if not isinstance(room, str) or not is_room(room):
            return  # Any code of the site may send to this channel.
        tally = await database_sync_to_async(Tally.count)(room)
        event = {"type": "chat.tally", **tally.as_dict()}
        try:
            await self.channel_layer.group_send(group_of(tally.room), event)
        except (LayerUnavailable, DeliveryUnknown):
            pass  # The tally is stored. Pages read it with the history.

    async def count_ping(self, message: dict[str, Any]) -> None:
        """Answer on the channel `reply_to`. So `manage.py demo` knows that a worker runs."""
        await self.channel_layer.send(message["reply_to"], {"type": "count.pong"})

    async def layer_down(self, message: dict[str, Any]) -> None:
        """Ignore `on_disconnect`, which each consumer gets on a channel of its own: a worker has no page."""

    async def layer_up(self, message: dict[str, Any]) -> None:
        """Ignore `on_reconnect`, for the same reason."""
