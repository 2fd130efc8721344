"""The WebSocket consumer whose clients come back and miss nothing."""

from __future__ import annotations

import inspect
import json
import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Collection
from contextvars import ContextVar
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs
from weakref import WeakKeyDictionary

from channels.consumer import get_handler_name
from channels.generic import websocket
from django.core.exceptions import ImproperlyConfigured
from django.core.serializers.json import DjangoJSONEncoder

from ..exceptions import ChannelClosed, LayerUnavailable
from ..layer import AsyncQueueChannelLayer
from ..messages.closing import CLOSE, Close, close_of, send_close
from ..messages.envelopes import Envelope
from ..rates import ClientMeters, Rate, checked_rate, network_of
from ..slices import Slice
from ..stopping.sockets import RESTART, SCOPE_KEY
from .consumer import AsyncConsumer
from .conversation import Conversation
from .limits import require_used
from .resuming import ARRIVED, BEAT, LOST, MISSED, OWN_TYPES, RESUMED, FollowedGroups, Taken
from .sources import Message

# A generator of our own: the state of the global one belongs to the application.
_jitter = random.Random()
# When a client comes back that was sent away, in ms.
_RETRY = (500, 3000)
# The message that a task works for. A task that a handler has left behind finds it different from that of the
# consumer, and so does a task of anything else: their frames have no id.
_handled: ContextVar[Taken | None] = ContextVar("channels_asyncq.handled", default=None)
_MOST_BODIES = 1024
_MOST_CHARACTERS = 16 * 1024


class Bodies:
    """
    The JSON of the last messages of a layer's groups: made once in a process, for all clients that get the same.

    Each layer has its own: two layers may give one position to messages of groups of one name.
    """

    def __init__(self) -> None:
        self._bodies: OrderedDict[tuple[object, str, int, int], str] = OrderedDict()

    def get(self, consumer: object, envelope: Envelope) -> str | None:
        """Return the JSON of a message that consumers of this class have sent, None if it is not kept."""
        return self._bodies.get((consumer, envelope.target, envelope.position, envelope.nth))

    def keep(self, consumer: object, envelope: Envelope, body: str) -> None:
        """Keep the JSON of a message that is in a log."""
        if envelope.position and len(body) <= _MOST_CHARACTERS:
            self._bodies[consumer, envelope.target, envelope.position, envelope.nth] = body
            if len(self._bodies) > _MOST_BODIES:
                self._bodies.popitem(last=False)


_resumes = ClientMeters()
_bodies: WeakKeyDictionary[AsyncQueueChannelLayer, Bodies] = WeakKeyDictionary()


class ResumableWebsocketConsumer(websocket.AsyncJsonWebsocketConsumer, AsyncConsumer):
    """
    A WebSocket that speaks JSON, follows groups, and whose clients come back and miss nothing.

        class Room(ResumableWebsocketConsumer):
            def resumable_groups(self):
                return [f"room.{self.scope['url_route']['kwargs']['pk']}"]

    It joins the groups when `connect()` has accepted. A client connects with `?since=<position>`, at first
    without. Frames to the client, all of them JSON:

    - `{"id": "<position>", "m": <message>}`: a message of a group. If the consumer has a handler for its type,
      the handler is called, and `m` is what it sends by `send_json()`.
    - `{"type": "resumed", "id": "<position>", "recovered": true, "reason": ""}`: after everything that was
      missed. Without `recovered`, nothing was sent before it: the client loads its data anew. It comes once, and
      again only if messages are lost for good later. The id has the name of the channel behind `~~`; add that to
      later ids, so that messages that exclude this connection are not sent to the next one.
    - `{"id": "<position>"}`: a fresh position, every `heartbeat` seconds.
    - `{"type": "retry", "ms": 1200}`: before a close with 1012 (4012 under Daphne), or another one that is not
      final: come back after that time.

    A client comes back with the last id that it has got. All other frames are the consumer's own. Needs
    channels_asyncq as the channel layer; with another one, connecting raises ImproperlyConfigured.
    """

    #: Seconds after which a client gets a fresh position.
    heartbeat: float = 15.0
    #: Since when this user may read, an aware datetime. Older messages are not replayed.
    not_before: datetime | None = None
    #: How often the clients of one `resume_key()` may come back with a position, such as "2/s"; None for any
    #: number. One that comes back more often gets the frame `retry`.
    resume_rate: str | None = None
    #: How many may come back at once after a quiet time. None: those of one second, at least one.
    resume_burst: int | None = None

    _followed: FollowedGroups | None = None
    # What is being handled, for the frames that its handler sends.
    _taken: Taken | None = None

    def resumable_groups(self) -> Collection[str] | Awaitable[Collection[str]]:
        """Return the groups that the client follows, after `connect()`. May be a coroutine function."""
        raise NotImplementedError(f"{type(self).__name__} needs resumable_groups(): the groups to follow")

    async def on_resumed(self, recovered: bool, reason: str) -> None:
        """
        Called after the frame `resumed`. Override it to send what the client needs when it has not recovered.
        """

    def resume_key(self) -> str:
        """
        Return the name of the client that `resume_rate` is for: its user if it is logged in, else its address.

        An IPv6 client is its network, of 64 bits. Override it where the site knows better.

        Raises:
            ImproperlyConfigured: there is no user, and the server knows no address.
        """
        user = self.scope.get("user")
        if user is not None and user.is_authenticated:
            return f"user {user.pk}"
        client = self.scope.get("client")
        if not client or not client[0]:
            raise ImproperlyConfigured(
                f"resume_rate of {type(self).__name__} needs the user or the address of a client, and the scope "
                "has neither: have the server take the address from a header of the proxy, or override "
                "resume_key()"
            )
        return f"address {network_of(client[0])}"

    @classmethod
    async def encode_json(cls, content: Any) -> str:
        """Return JSON, with datetimes, UUIDs and decimals as Django writes them."""
        return json.dumps(content, cls=DjangoJSONEncoder)

    async def send_json(self, content: Any, close: bool = False, *, more: bool = False) -> None:
        """
        Send JSON to the client. In a handler of a group's message, it is sent with the id of that message.

        Args:
            more: another frame of the same message follows. Only the last one has the id of the message, so that
                a client that is cut off between them gets all of them again.
        """
        taken = self._taken
        if taken is None or _handled.get() is not taken:
            await super().send_json(content, close)
            return
        frame = {"m": content} if more else {"id": taken.position, "m": content}
        await super().send_json(frame, close)

    # Wiring

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse limits that are wrong, and those of resumes."""
        super().__init_subclass__(**arguments)
        _resume_rate(cls)

    async def _open_source(self, layer: AsyncQueueChannelLayer) -> FollowedGroups:
        _require_seconds(type(self).__name__, self.heartbeat)
        require_used(self, "resume_rate", resume_burst=None)
        if SCOPE_KEY in self.scope:
            self.scope[SCOPE_KEY].retry = _RETRY  # type: ignore[literal-required]
        follower = await layer.open_follower(())
        follower.channel.obey_close()
        follower.channel.read_by(type(self))
        self._followed = FollowedGroups(follower, self.heartbeat)
        return self._followed

    async def dispatch(self, message: Message) -> None:
        kind = message["type"]
        followed = self._followed
        if kind in OWN_TYPES and self._conversation().client.has_closed:
            # Its disconnect is still to come. A server refuses every frame until then.
            self._source().close()
        elif kind == ARRIVED and followed is not None and followed.taken is not None:
            taken, followed.taken = followed.taken, None
            await self._on_group_message(followed, taken)
        elif kind == MISSED:
            await self._replay(self._source())
        elif kind == RESUMED:
            await self._on_resumed(self._source())
        elif kind == LOST:
            await self._mend(self._source())
        elif kind == BEAT:
            await super().send_json({"id": self._source().follower.position})
        elif kind == "websocket.connect":
            source = self._source()
            await super().dispatch(message)
            if self._conversation().client.is_open:
                await self._begin(source)
        else:
            await super().dispatch(message)

    def _source(self) -> FollowedGroups:
        if self._followed is None:
            raise ImproperlyConfigured(
                f"{type(self).__name__} needs a channel layer of channels_asyncq: set BACKEND in "
                'CHANNEL_LAYERS to "channels_asyncq.AsyncQueueChannelLayer"'
            )
        return self._followed

    def _conversation(self) -> Conversation:
        assert self._asyncq is not None
        return self._asyncq

    async def _begin(self, source: FollowedGroups) -> None:
        """Join the groups, from the position that the client has."""
        groups = self.resumable_groups()
        if inspect.isawaitable(groups):
            groups = await groups
        if isinstance(groups, str):
            raise TypeError(
                f"resumable_groups() of {type(self).__name__} returned the str {groups!r}: return [{groups!r}]"
            )
        [since] = parse_qs(self.scope["query_string"].decode("latin-1")).get("since", [None])[-1:]
        if since is not None and (wait := self._wait_to_resume()):
            await self._send_away(source, round(1000 * wait))
            return
        try:
            await source.begin(tuple(groups), since, self.not_before)
        except LayerUnavailable:
            await self._send_away(source)
        except ChannelClosed:
            source.close()  # the conversation finds it closed, and ends

    def _wait_to_resume(self) -> float:
        """Return the seconds until this client may resume, 0.0 if it may now."""
        rate = _resume_rate(self)
        if rate is None:
            return 0.0
        wait = _resumes.take(f"{type(self).__module__}.{type(self).__qualname__}", self.resume_key(), rate)
        if wait:
            self.channel_layer.note_limited("resume_rate", type(self).__name__, "it is to come back later")
        return wait

    async def _replay(self, source: FollowedGroups) -> None:
        """Send what was missed. Other tasks get their turns."""
        client = self._conversation().client
        turn = Slice()
        while client.is_open and (taken := source.next_missed()) is not None:
            await self._on_group_message(source, taken)
            await turn.rest()

    async def _on_group_message(self, source: FollowedGroups, taken: Taken) -> None:
        bodies = _bodies.get(self.channel_layer) or _bodies.setdefault(self.channel_layer, Bodies())
        body = bodies.get(type(self), taken.envelope)
        if body is None:
            message = source.follower.message_of(taken.envelope)
            if callable(getattr(self, get_handler_name(message), None)):
                await self._handle(message, taken)
                return
            if message["type"] == CLOSE:
                if not source.is_returning:  # else it was meant for the connection before this one
                    await self._asyncq_close(self._conversation(), close_of(message))
                return
            body = await self.encode_json(message)
            bodies.keep(type(self), taken.envelope, body)
        if self._conversation().client.is_open:
            await self.send(f'{{"id": "{taken.position}", "m": {body}}}')

    async def _handle(self, message: Message, taken: Taken) -> None:
        """Call the handler of a message. What it sends has the id of the message."""
        self._taken = taken
        token = _handled.set(taken)
        try:
            await super().dispatch(message)
        finally:
            _handled.reset(token)
            self._taken = None

    async def _on_resumed(self, source: FollowedGroups) -> None:
        await self._send_resumed(source, source.follower.recovered, source.follower.reason)

    async def _send_resumed(self, source: FollowedGroups, recovered: bool, reason: str) -> None:
        position = source.follower.position_with_channel
        frame = {"type": "resumed", "id": position, "recovered": recovered, "reason": reason}
        await super().send_json(frame)
        await self.on_resumed(recovered, reason)

    async def _mend(self, source: FollowedGroups) -> None:
        """Get from the log what the channel has lost, or tell the client."""
        try:
            reset = await source.follower.mend()
        except LayerUnavailable:
            await self._send_away(source)
            return
        except ChannelClosed:
            source.close()
            return
        if reset is not None:
            await self._send_resumed(source, False, reset.reason)

    async def _asyncq_close(self, conversation: Conversation, close: Close) -> None:
        """Close the connection. Before that, tell a client that may come back when."""
        if close.retry is not None and not close.is_final and conversation.client.is_open:
            milliseconds = round(1000 * close.retry * _jitter.uniform(1, 2))
            await super().send_json({"type": "retry", "ms": milliseconds})
        await super()._asyncq_close(conversation, close)

    async def _send_away(self, source: FollowedGroups, least: int = 0) -> None:
        """Have the client come back later, in at least `least` ms: it cannot be served now."""
        source.close()
        await super().send_json({"type": "retry", "ms": least + _jitter.randint(*_RETRY)})
        await send_close(self.base_send, RESTART)


def _resume_rate(consumer: Any) -> Rate | None:
    """Return the rate of resumes of a consumer, or of a class of consumers. Raises as `checked_rate()`."""
    name = (consumer if isinstance(consumer, type) else type(consumer)).__name__
    return checked_rate(name, "resume_rate", consumer.resume_rate, "resume_burst", consumer.resume_burst)


def _require_seconds(consumer: str, heartbeat: object) -> None:
    if isinstance(heartbeat, bool) or not isinstance(heartbeat, (int, float)):
        raise TypeError(f"heartbeat of {consumer} must be a number of seconds, not {heartbeat!r}")
    if not 0 < heartbeat < math.inf:
        raise ValueError(f"heartbeat of {consumer} must be a positive number of seconds, not {heartbeat!r}")
