from __future__ import annotations

from typing import Any

from asgiref.sync import async_to_sync
from channels.consumer import SyncConsumer

from channels_asyncq import DeliveryUnknown, LayerUnavailable
from chat.models import Tally
from chat.rules import group_of, is_room


class WordCounter(SyncConsumer):
    """
    Counts words for all rooms, in a process of its own: `manage.py runworker wordcount`.

    Start as many as you like: each message of the channel reaches one of them.
    """

    def count_words(self, message: dict[str, Any]) -> None:
        room, text = message.get("room"), message.get("text")
        if not isinstance(room, str) or not is_room(room) or not isinstance(text, str):
            return  # Anybody may send to this channel.
        tally = Tally.add(room, len(text.split()))
        event = {"type": "chat.tally", "messages": tally.messages, "words": tally.words}
        try:
            async_to_sync(self.channel_layer.group_send)(group_of(tally.room), event)
        except (LayerUnavailable, DeliveryUnknown):
            pass  # The tally is stored; pages read it when they ask for the history.

    def count_ping(self, message: dict[str, Any]) -> None:
        """Answer on the channel that the asker names: how `manage.py demo` knows that a worker is there."""
        async_to_sync(self.channel_layer.send)(message["reply_to"], {"type": "count.pong"})

    def layer_down(self, message: dict[str, Any]) -> None:
        """The settings' `on_disconnect` reaches every channel; this one has nobody to tell."""

    def layer_up(self, message: dict[str, Any]) -> None:
        """As `layer_down`."""
