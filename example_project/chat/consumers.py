from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Collection, Coroutine
from typing import Any
from urllib.parse import parse_qs

from channels.db import database_sync_to_async
from channels.exceptions import ChannelFull

from channels_asyncq import AsyncQueueChannelLayer, DeliveryUnknown, LayerClosed, LayerUnavailable
from channels_asyncq.generic.websocket import AsyncJsonWebsocketConsumer
from chat.models import Message, Tally
from chat.rules import (
    ROOM_RULE,
    Refused,
    clean_author,
    clean_key,
    clean_text,
    group_of,
    guest_name,
    is_room,
    parse_after,
    parse_frame,
)

HISTORY = 50
RECENT = 20  # how many ids a roll call names
MOST_SENDS = 100  # that one page may have under way
CLOSE_BAD_ROOM = 4404
CLOSE_TRY_AGAIN = 4013  # what 1013 means; Daphne sends no code of its own between 1000 and 3000

Event = dict[str, Any]


def member_of(page: str) -> str:
    """
    Return what the room calls a page: the same when it comes back, so that it is never there twice.

    What the page calls itself stays between it and us: nobody else can come back in its name.
    """
    return hashlib.sha256(page.encode(errors="replace")).hexdigest()[:16] if page else secrets.token_hex(8)


def describe(scope: Any) -> dict[str, Any]:
    """Return which of the servers this is: its port, if it has one, and its process."""
    _, port = scope.get("server") or (None, None)
    return {"port": port, "pid": os.getpid()}


async def send_if_possible(sending: Coroutine[Any, Any, None]) -> None:
    """Await a send through the layer. Nothing is lost with it: the next roll call or count makes up for it."""
    try:
        await sending
    except (ChannelFull, LayerUnavailable, LayerClosed, DeliveryUnknown):
        pass  # The layer logs an outage, and the page is told of it (`layer_down`).


async def no_such_socket(scope: Any, receive: Any, send: Any) -> None:
    """Refuse a WebSocket whose path is nobody's (HTTP 403), in place of Channels' traceback."""
    await send({"type": "websocket.close"})


class ChatConsumer(AsyncJsonWebsocketConsumer):
    """
    One page in one room.

    The page sends frames (see `chat.rules.parse_frame`). It gets frames with a "type": welcome, history,
    stored, message, typing, tally, notice, error, layer, and for presence roll_call, here and left.

    What is said is stored first, and the page is told (stored). Then it goes to the room (message), the page
    included. Nothing depends on the second step: each roll call names the newest messages, and a page that lacks
    one asks for it. So an outage of the layer, or the end of this process, delays a message and loses none.

    Who is here is asked, never stored. Whoever wants to know calls the roll over the group, and each consumer
    answers over the group. A process that was killed does not answer, so its people are gone, with no table
    to clean up. A group has one order for all, so an answer that comes after a call is an answer to it.
    """

    channel_layer: AsyncQueueChannelLayer
    joined = False
    sends: set[asyncio.Task[None]]

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
        self.member = member_of(query.get("page", [""])[0])
        self.sends = set()
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
        await self.tell(
            "welcome", room=self.room, member=self.member, name=self.name, server=describe(self.scope)
        )
        await self.tell_history(after)
        await self.call_the_roll()

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
            action, frame = parse_frame(text_data)
        except Refused as refusal:
            await self.tell("error", code="refused", text=str(refusal))
            return
        try:
            value = frame[action]
            if action == "message":
                await self.say(clean_text(value), clean_key(frame.get("key")))
            elif action == "typing":
                # Shown for a moment and worth nothing afterwards; the author's own page needs no copy.
                self.publish("chat.typing", exclude=[self.channel_name], name=self.name)
            elif action == "name":
                self.name = clean_author(value)
                self.publish("chat.here", member=self.member, name=self.name)
            elif action == "who":
                await self.call_the_roll()
            elif action == "after":
                await self.tell_history(parse_after(value))
        except Refused as refusal:
            await self.tell("error", code="refused", text=str(refusal), key=frame.get("key"))

    # What a page can do

    async def say(self, text: str, key: str | None) -> None:
        """Store a message, show it to the room and have its words counted."""
        message = await database_sync_to_async(Message.store)(self.room, self.name, text, key)
        await self.tell("stored", **message.as_dict())
        self.publish("chat.message", **message.as_dict())
        self.have_counted()

    async def call_the_roll(self) -> None:
        """Ask the room who is here, tell it which messages it should have, and see that these are counted."""
        recent = await database_sync_to_async(Message.newest_ids)(self.room, RECENT)
        self.publish("chat.roll_call", recent=recent)
        if recent and not await Tally.objects.filter(room=self.room, counted_to__gte=recent[0]).aexists():
            self.have_counted()

    def have_counted(self) -> None:
        """Ask a worker to count what was said."""
        self.send_aside(self.channel_layer.send("wordcount", {"type": "count.words", "room": self.room}))

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

    def publish(self, kind: str, exclude: Collection[str] = (), **event: Any) -> None:
        """Send an event to the room."""
        self.send_aside(self.channel_layer.group_send(self.group, {"type": kind, **event}, exclude=exclude))

    def send_aside(self, sending: Coroutine[Any, Any, None]) -> None:
        """
        Send through the layer in a task, which an outage holds up for `send_timeout`; this consumer goes on.

        Tasks begin in the order in which they were made, and the layer keeps the order of the sends. There are
        never more than MOST_SENDS: what exceeds them is left to the next roll call.
        """
        if len(self.sends) >= MOST_SENDS:
            sending.close()
            return
        task = asyncio.create_task(send_if_possible(sending))
        self.sends.add(task)  # The event loop itself keeps only a weak reference.
        task.add_done_callback(self.sends.discard)

    # What the room says. `.get` because anybody may publish to a group, from any language.

    async def chat_message(self, event: Event) -> None:
        keys = ("id", "author", "text", "sent_at", "key")
        await self.tell("message", **{key: event.get(key) for key in keys})

    async def chat_typing(self, event: Event) -> None:
        await self.tell("typing", name=event.get("name"))

    async def chat_tally(self, event: Event) -> None:
        await self.tell("tally", messages=event.get("messages"), words=event.get("words"))

    async def chat_notice(self, event: Event) -> None:
        await self.tell("notice", text=event.get("text"))

    async def chat_roll_call(self, event: Event) -> None:
        await self.tell("roll_call", recent=event.get("recent"))
        if self.joined:
            self.publish("chat.here", member=self.member, name=self.name)

    async def chat_here(self, event: Event) -> None:
        await self.tell("here", member=event.get("member"), name=event.get("name"))

    async def chat_left(self, event: Event) -> None:
        if self.joined and event.get("member") == self.member:
            # An earlier connection of this page, which ended late.
            self.publish("chat.here", member=self.member, name=self.name)
            return
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
