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

    Start as many as you like: each message of the channel reaches one of them. A message says that there is
    something to count, and the database says what: so no word counts twice, and none that is stored is left out,
    whatever becomes of a message.
    """

    async def count_words(self, message: dict[str, Any]) -> None:
        room = message.get("room")
        if not isinstance(room, str) or not is_room(room):
            return  # Anybody may send to this channel.
        tally = await database_sync_to_async(Tally.count)(room)
        event = {"type": "chat.tally", "messages": tally.messages, "words": tally.words}
        try:
            await self.channel_layer.group_send(group_of(tally.room), event)
        except (LayerUnavailable, DeliveryUnknown):
            pass  # The tally is stored; pages read it when they ask for the history.

    async def count_ping(self, message: dict[str, Any]) -> None:
        """Answer on the channel that the asker names: how `manage.py demo` knows that a worker is there."""
        await self.channel_layer.send(message["reply_to"], {"type": "count.pong"})

    async def layer_down(self, message: dict[str, Any]) -> None:
        """The settings' `on_disconnect` reaches every channel; this one has nobody to tell."""

    async def layer_up(self, message: dict[str, Any]) -> None:
        """As `layer_down`."""

    async def layer_loss(self, message: dict[str, Any]) -> None:
        """As `layer_down`: what it counts comes from a normal channel, which loses nothing."""
