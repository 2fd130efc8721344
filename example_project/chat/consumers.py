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
from channels_asyncq.generic.websocket import ResumableWebsocketConsumer
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
    people_of,
)

RECENT = 20  # ids in a roll call
MOST_SENDS = 100  # unfinished sends of one page
CLOSE_BAD_ROOM = 4404
CLOSE_TRY_AGAIN = 4013  # in place of 1013: Daphne refuses to send codes between 1000 and 3000

Event = dict[str, Any]


def member_of(page: str) -> str:
    """
    Return the public id of a page. It stays the same when the page reconnects, so a page is never listed twice.

    The page's own key stays secret, so that no other page can take its place.
    """
    return hashlib.sha256(page.encode(errors="replace")).hexdigest()[:16] if page else secrets.token_hex(8)


def describe(scope: Any) -> dict[str, Any]:
    """Return the port of this server, if it has one, and its process id."""
    _, port = scope.get("server") or (None, None)
    return {"port": port, "pid": os.getpid()}


async def send_if_possible(sending: Coroutine[Any, Any, None]) -> None:
    """Await a send through the layer, and ignore a failure: the next roll call or count makes up for it."""
    try:
        await sending
    except (ChannelFull, LayerUnavailable, LayerClosed, DeliveryUnknown):
        pass  # The layer logs the outage, and the page gets `layer_down`.


async def no_such_socket(scope: Any, receive: Any, send: Any) -> None:
    """Refuse a WebSocket with an unknown path (HTTP 403). Without this, Channels raises a traceback."""
    await send({"type": "websocket.close"})


class ChatConsumer(ResumableWebsocketConsumer):
    """
    One page in one room.

    The room has two groups. What is said, the tally and notices go to the first. A page that comes back gets what
    it has missed of them: this class has no handlers for these messages, so they go to the page as they are. The
    second group has what is of the moment: who is here, and who is typing.

    The page sends frames (see `chat.rules.parse_frame`). Besides the messages of the first group it gets frames
    with a "type": welcome, history, stored, typing, error, layer, and for presence roll_call, here and left.

    A message is stored first, and its page gets "stored". Then it is sent to the room as "chat.message", to its
    own page too. Each roll call contains the ids of the newest messages, and a page that lacks one asks for it.
    So an outage of the layer, or the end of this process, delays a message and loses none.

    Presence is not stored. A consumer calls the roll over the group, and each consumer answers over the group. A
    killed process does not answer, so its people disappear, and no table needs cleaning. All members of a group
    get one order, so an answer after a call belongs to that call.
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
        self.people = people_of(self.room)
        self.member = member_of(query.get("page", [""])[0])
        self.sends = set()
        try:
            self.name = clean_author(query.get("name", [""])[0])
        except Refused:
            self.name = guest_name()
        try:
            await self.channel_layer.group_add(self.people, self.channel_name)
        except (LayerUnavailable, DeliveryUnknown):
            await self.tell("error", code="unavailable", text="The chat cannot reach its message bus.")
            await self.close(CLOSE_TRY_AGAIN)
            return
        self.joined = True
        await self.tell(
            "welcome", room=self.room, member=self.member, name=self.name, server=describe(self.scope)
        )

    def resumable_groups(self) -> list[str]:
        return [self.group]

    async def on_resumed(self, recovered: bool, reason: str) -> None:
        """The page has what it missed. Or it has not recovered: then it asks for the stored messages."""
        await self.call_the_roll()

    async def disconnect(self, code: int) -> None:
        if not self.joined:
            return
        self.joined = False
        try:
            await self.channel_layer.group_discard(self.people, self.channel_name)
            await self.channel_layer.group_send(self.people, {"type": "chat.left", "member": self.member})
        except (LayerUnavailable, DeliveryUnknown):
            pass  # The next roll call has the same effect.

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
                # The author's own page needs no copy.
                self.publish(self.people, "chat.typing", exclude=[self.channel_name], name=self.name)
            elif action == "name":
                self.name = clean_author(value)
                self.publish(self.people, "chat.here", member=self.member, name=self.name)
            elif action == "who":
                await self.call_the_roll()
            elif action == "after":
                await self.tell_history(parse_after(value))
        except Refused as refusal:
            await self.tell("error", code="refused", text=str(refusal), key=frame.get("key"))

    # What a page can do

    async def say(self, text: str, key: str | None) -> None:
        """Store a message, send it to the room and have its words counted."""
        message = await database_sync_to_async(Message.store)(self.room, self.name, text, key)
        await self.tell("stored", **message.as_dict())
        self.publish(self.group, "chat.message", **message.as_dict())
        self.have_counted()

    async def call_the_roll(self) -> None:
        """Ask all pages of the room to answer, with the ids of the newest messages; have these counted."""
        recent = await database_sync_to_async(Message.newest_ids)(self.room, RECENT)
        self.publish(self.people, "chat.roll_call", recent=recent)
        if recent and not await Tally.objects.filter(room=self.room, counted_to__gte=recent[0]).aexists():
            self.have_counted()

    def have_counted(self) -> None:
        """Ask a worker to count the new messages."""
        self.send_aside(self.channel_layer.send("wordcount", {"type": "count.words", "room": self.room}))

    async def tell_history(self, after: int) -> None:
        """Send the newest messages after the given id, oldest first, and the room's tally."""
        messages, truncated = await database_sync_to_async(Message.history)(self.room, after)
        await self.tell("history", messages=messages, truncated=truncated)
        tally = await database_sync_to_async(Tally.of)(self.room)
        await self.tell("chat.tally", **tally.as_dict())

    async def tell(self, kind: str, **frame: Any) -> None:
        """Send one frame to this page."""
        await self.send_json({"type": kind, **frame})

    def publish(self, group: str, kind: str, exclude: Collection[str] = (), **event: Any) -> None:
        """Send an event to one of the groups of the room."""
        self.send_aside(self.channel_layer.group_send(group, {"type": kind, **event}, exclude=exclude))

    def send_aside(self, sending: Coroutine[Any, Any, None]) -> None:
        """
        Send through the layer in a task. In an outage the task waits for `send_timeout`; this consumer goes on.

        Tasks begin in the order in which they were created, and the layer keeps the order of the sends. Beyond
        MOST_SENDS tasks a send is dropped: the next roll call makes up for it.
        """
        if len(self.sends) >= MOST_SENDS:
            sending.close()
            return
        task = asyncio.create_task(send_if_possible(sending))
        self.sends.add(task)  # The event loop itself keeps only a weak reference.
        task.add_done_callback(self.sends.discard)

    # Messages of the second group. `.get`, because other programs may publish to a group too.

    async def chat_typing(self, event: Event) -> None:
        await self.tell("typing", name=event.get("name"))

    async def chat_roll_call(self, event: Event) -> None:
        await self.tell("roll_call", recent=event.get("recent"))
        if self.joined:
            self.publish(self.people, "chat.here", member=self.member, name=self.name)

    async def chat_here(self, event: Event) -> None:
        await self.tell("here", member=event.get("member"), name=event.get("name"))

    async def chat_left(self, event: Event) -> None:
        if self.joined and event.get("member") == self.member:
            # An earlier connection of this page has ended late.
            self.publish(self.people, "chat.here", member=self.member, name=self.name)
            return
        await self.tell("left", member=event.get("member"))

    # Messages of the layer: `on_disconnect` and `on_reconnect` in the settings. What is lost in between for good
    # makes `recovered` false.

    async def layer_down(self, event: Event) -> None:
        await self.tell("layer", up=False)

    async def layer_up(self, event: Event) -> None:
        """The page asks for the messages that could not be sent meanwhile, and calls the roll."""
        await self.tell("layer", up=True)
