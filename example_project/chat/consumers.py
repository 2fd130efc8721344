from __future__ import annotations

import logging
import secrets
from typing import Any
from urllib.parse import parse_qs

from channels.exceptions import ChannelFull

from channels_asyncq import AsyncQueueChannelLayer, DeliveryUnknown, LayerUnavailable
from channels_asyncq.generic.websocket import AsyncJsonWebsocketConsumer
from chat.models import Message, Tally
from chat.rules import (
    ROOM_RULE,
    Refused,
    clean_author,
    clean_text,
    group_of,
    guest_name,
    is_room,
    parse_after,
    parse_frame,
)

logger = logging.getLogger(__name__)

HISTORY = 50
CLOSE_BAD_ROOM = 4404
CLOSE_TRY_AGAIN = 4013  # what 1013 means; Daphne sends no code of its own between 1000 and 3000

Event = dict[str, Any]


async def no_such_socket(scope: Any, receive: Any, send: Any) -> None:
    """Refuse a WebSocket whose path is nobody's (HTTP 403), in place of Channels' traceback."""
    await send({"type": "websocket.close"})


class ChatConsumer(AsyncJsonWebsocketConsumer):
    """
    One page in one room.

    The page sends frames (see `chat.rules.parse_frame`). It gets frames with a "type": welcome, history,
    message, typing, tally, notice, error, layer, and for presence roll_call, here and left.

    Who is here is asked, never stored. Whoever wants to know calls the roll over the group, and each consumer
    answers over the group. A process that was killed does not answer, so its people are gone, with no table
    to clean up. A group has one order for all, so an answer that comes after a call is an answer to it.
    """

    channel_layer: AsyncQueueChannelLayer
    joined = False

    # The socket

    async def connect(self) -> None:
        await self.accept()
        self.room = self.scope["url_route"]["kwargs"]["room"]
        if not is_room(self.room):
            await self.tell("error", code="room", text=ROOM_RULE)
            await self.close(CLOSE_BAD_ROOM)
            return
        query = parse_qs(self.scope["query_string"].decode(errors="replace"))
        self.group = group_of(self.room)
        self.member = secrets.token_hex(8)
        try:
            self.name = clean_author(query.get("name", [""])[0])
        except Refused:
            self.name = guest_name()
        try:
            after = parse_after(query.get("after", ["0"])[0])
        except Refused:
            after = 0

        # Join first, read second: what is said in between comes twice, and the page drops the repeat by its
        # id. The other way round it would not come at all.
        try:
            await self.channel_layer.group_add(self.group, self.channel_name)
        except (LayerUnavailable, DeliveryUnknown):
            await self.tell("error", code="unavailable", text="The chat cannot reach its message bus.")
            await self.close(CLOSE_TRY_AGAIN)
            return
        self.joined = True
        await self.tell("welcome", room=self.room, member=self.member, name=self.name)
        await self.tell_history(after)
        await self.broadcast("chat.roll_call")

    async def disconnect(self, code: int) -> None:
        if not self.joined:
            return
        self.joined = False
        try:
            await self.channel_layer.group_discard(self.group, self.channel_name)
            await self.channel_layer.group_send(self.group, {"type": "chat.left", "member": self.member})
        except (LayerUnavailable, DeliveryUnknown):
            pass  # The next roll call says the same.

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any
    ) -> None:
        if not self.joined:
            return
        try:
            action, value = parse_frame(text_data)
            if action == "message":
                await self.say(clean_text(value))
            elif action == "typing":
                # Shown for a moment and worth nothing afterwards; the author's own page needs no copy.
                await self.broadcast("chat.typing", exclude=[self.channel_name], name=self.name)
            elif action == "name":
                self.name = clean_author(value)
                await self.broadcast("chat.here", member=self.member, name=self.name)
            elif action == "who":
                await self.broadcast("chat.roll_call")
            elif action == "after":
                await self.tell_history(parse_after(value))
        except Refused as refusal:
            await self.tell("error", code="refused", text=str(refusal))

    # What a page can do

    async def say(self, text: str) -> None:
        """Store a message, show it to the room and have its words counted."""
        message = await Message.objects.acreate(room=self.room, author=self.name, text=text)
        if not await self.broadcast("chat.message", **message.as_dict()):
            # Stored, so nothing is lost: the others read it in the history once the layer is back.
            await self.tell("message", **message.as_dict())
        try:
            await self.channel_layer.send(
                "wordcount", {"type": "count.words", "room": self.room, "text": text}
            )
        except (ChannelFull, LayerUnavailable, DeliveryUnknown) as problem:
            logger.warning("A message of room %s is not counted: %s", self.room, problem)

    async def tell_history(self, after: int) -> None:
        """Send the newest messages after the given id, oldest first, and the room's tally."""
        newest = Message.objects.filter(room=self.room, id__gt=after).order_by("-id")[: HISTORY + 1]
        messages = [message.as_dict() async for message in newest]
        truncated = len(messages) > HISTORY
        await self.tell("history", messages=messages[:HISTORY][::-1], truncated=truncated)
        tally = await Tally.objects.filter(room=self.room).afirst()
        await self.tell("tally", messages=tally.messages if tally else 0, words=tally.words if tally else 0)

    async def tell(self, kind: str, **frame: Any) -> None:
        """Send one frame to this page."""
        await self.send_json({"type": kind, **frame})

    async def broadcast(self, kind: str, exclude: list[str] | None = None, **event: Any) -> bool:
        """Send an event to the room. In an outage: tell this page, and return False."""
        try:
            await self.channel_layer.group_send(self.group, {"type": kind, **event}, exclude=exclude or ())
        except (LayerUnavailable, DeliveryUnknown):
            await self.tell(
                "error", code="unavailable", text="Live updates are interrupted; messages are kept."
            )
            return False
        return True

    # What the room says. `.get` because anybody may publish to a group, from any language.

    async def chat_message(self, event: Event) -> None:
        keys = ("id", "author", "text", "sent_at")
        await self.tell("message", **{key: event.get(key) for key in keys})

    async def chat_typing(self, event: Event) -> None:
        await self.tell("typing", name=event.get("name"))

    async def chat_tally(self, event: Event) -> None:
        await self.tell("tally", messages=event.get("messages"), words=event.get("words"))

    async def chat_notice(self, event: Event) -> None:
        await self.tell("notice", text=event.get("text"))

    async def chat_roll_call(self, event: Event) -> None:
        await self.tell("roll_call")
        if self.joined:
            await self.broadcast("chat.here", member=self.member, name=self.name)

    async def chat_here(self, event: Event) -> None:
        await self.tell("here", member=event.get("member"), name=event.get("name"))

    async def chat_left(self, event: Event) -> None:
        await self.tell("left", member=event.get("member"))

    # What the layer says: `on_disconnect`, `on_reconnect` and `on_loss` in the settings

    async def layer_down(self, event: Event) -> None:
        await self.tell("layer", up=False)

    async def layer_up(self, event: Event) -> None:
        """The page asks for what it missed, and calls the roll."""
        await self.tell("layer", up=True)

    async def layer_loss(self, event: Event) -> None:
        """Something is missing, or may be: the page asks the history for it."""
        await self.tell("layer", up=True)
