"""The sends of one session: to its own channels, other sessions, normal channels and groups."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection

from channels.exceptions import ChannelFull

from ..bus.base import WorkQueues
from ..clock import monotonic
from ..exceptions import LayerClosed, StillFull
from ..local.hub import Hub
from ..local.mailbox import LIMIT, Mailbox
from ..messages.envelopes import Envelope
from ..names import owner_of
from ..settings.options import Options
from ..slices import Slice
from .channel_names import ChannelNames
from .lifetime import Lifetime
from .owners import not_here
from .routes import Routes
from .sweeping import Sweeper
from .waiting import SenderLines


def local_envelope(payload: bytes, channel: str, expiry: float) -> Envelope:
    """Wrap an encoded message that stays in this process."""
    return Envelope(payload, channel, expires_at=monotonic() + expiry)


class MessageSender:
    """Sends encoded messages for one session. A message for an own channel never leaves the process."""

    def __init__(
        self,
        options: Options,
        names: ChannelNames,
        inbox: bytes,
        lifetime: Lifetime,
        hub: Hub,
        queues: WorkQueues,
        mailbox: Mailbox,
        routes: Routes,
        sweeper: Sweeper,
    ) -> None:
        self._options = options
        self._names = names
        self._inbox = inbox
        self._lifetime = lifetime
        self._hub = hub
        self._queues = queues
        self._mailbox = mailbox
        self._routes = routes
        self._sweeper = sweeper
        self._to_own = 0
        #: The senders that wait for a place in a normal channel.
        self.waiting = SenderLines(queues, routes, lifetime)

    @property
    def local(self) -> int:
        """How many messages were for channels of this session: its own, and those of other loops here."""
        return self._to_own + self._mailbox.taken

    def send(self, channel: str, payload: bytes) -> Awaitable[object] | None:
        """Send to a channel; return an awaitable, or None if it is done."""
        if self._lifetime.is_closed:
            raise LayerClosed(channel)
        if self._names.is_own(channel):
            self._hub.put_own(channel, local_envelope(payload, channel, self._options.expiry))
            self._to_own += 1
            if self._sweeper.timer is None:
                self._sweeper.start()
            return None
        return self._routes.to_channel(channel).send(payload)

    async def group_send(self, group: str, payload: bytes, excluded: tuple[str, ...]) -> None:
        """Send to a group: to its topic, and a copy to each normal channel that is a member."""
        self._lifetime.require_open()
        members = await self._routes.to_group(group).send(payload, excluded)
        if members:
            await self.push_copies(members, payload, excluded)

    async def push_copies(self, members: list[bytes], payload: bytes, excluded: Collection[str]) -> None:
        """Push a group's message to its members that are normal channels; a full one drops it, counted."""
        excluded = frozenset(excluded)
        # A bus inside the process replies without giving the loop a turn.
        turn = Slice()
        for member in members:
            await turn.rest()
            channel = member.decode()
            if channel in excluded:
                continue
            try:
                # The route is not kept: a kept route says that the channel was not closed here.
                route = self._routes.channels.get(channel) or self._queues.route(channel)
                await route.send(payload)
            except ChannelFull:
                self._hub.overflow.count(channel)

    def hand_over(self, channel: str, payload: bytes) -> bool:
        """Take a message for one of this session's channels, from any thread; False if the loop is closed."""
        if not self._mailbox.put(self._inbox, local_envelope(payload, channel, self._options.expiry)):
            raise ChannelFull(
                f"{LIMIT} messages wait for the event loop of channel {channel!r}: it is blocked, or slower than "
                "its senders; send less, or use a normal channel"
            )
        return self._mailbox.drain_soon()

    async def send_wait(self, channel: str, payload: bytes, timeout: float | None) -> None:  # noqa: ASYNC109
        """
        Send to an own or a normal channel, and wait for a place if the channel is full.

        Cancelling is safe: the message is not sent then, unless its bytes were already on their way.

        Raises:
            StillFull: there was no place within `timeout` seconds. The message was not sent.
        """
        self._lifetime.require_open(channel)
        session_id = owner_of(channel)
        if session_id == self._names.session_id:
            await self._put_when_free(channel, payload, timeout)
        elif session_id is None:
            await self.waiting.send(channel, payload, timeout)
        else:
            raise not_here(channel, "send_wait() cannot see how full it is: use send(), or a normal channel")

    async def _put_when_free(self, channel: str, payload: bytes, timeout: float | None) -> None:  # noqa: ASYNC109
        buffer = self._hub.channels.open(channel)
        expiry = self._options.expiry
        try:
            async with asyncio.timeout(timeout):
                await buffer.put_when_free(local_envelope(payload, channel, expiry), expiry)
        except TimeoutError:
            raise StillFull(f"channel {channel!r} had no place for {timeout} s") from None
        self._hub.note_put(buffer)
        self._to_own += 1
