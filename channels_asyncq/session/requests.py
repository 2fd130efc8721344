"""The requests of one session to others: to change the memberships of their channels, and to flush."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from ..bus.base import Bus
from ..clock import monotonic
from ..exceptions import ChannelLayerError
from ..local.counters import Counters
from ..messages.codecs import Codec
from ..messages.envelopes import CONTROL
from ..names import Topics
from ..settings.options import Options

# A request is repeated this often, while the process of its owner may be reconnecting.
_ASK_AGAIN = 0.5
# The owner is gone when for this long no session was subscribed to its inbox.
_GONE_AFTER = 2.5
# The other sessions have this long to confirm a flush; one that is disconnected cannot.
_FLUSH_WAIT = 1.0


@dataclass(slots=True)
class Request:
    """A request to other sessions. The future completes when `expected` of them have confirmed it."""

    done: asyncio.Future[None]
    expected: int | None = None
    confirmed: int = 0

    def check(self) -> None:
        """Complete the future if enough sessions have confirmed."""
        if self.expected is not None and self.confirmed >= self.expected and not self.done.done():
            self.done.set_result(None)


class Requests:
    """The requests of one session that others have not confirmed yet, by number. Numbers grow with each call."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        session_id: str,
        topics: Topics,
        codec: Codec,
        bus: Bus,
        counters: Counters,
    ) -> None:
        self._loop = loop
        self._options = options
        self._session_id = session_id
        self._topics = topics
        self._codec = codec
        self._bus = bus
        self._counters = counters
        self._inbox = topics.inbox(session_id)
        self._everybody = topics.everybody
        self._pending: dict[int, Request] = {}
        self._last_number = 0

    @property
    def is_empty(self) -> bool:
        return not self._pending

    def _new(self, expected: int | None) -> tuple[int, Request]:
        self._last_number += 1
        request = Request(self._loop.create_future(), expected)
        self._pending[self._last_number] = request
        return self._last_number, request

    def confirmed(self, number: int) -> None:
        """Note that another session has confirmed a request."""
        request = self._pending.get(number)
        if request is not None:
            request.confirmed += 1
            request.check()

    def refused(self, number: int, error: ChannelLayerError) -> None:
        """Note that the owner of a channel has refused a request."""
        request = self._pending.get(number)
        if request is not None and not request.done.done():
            request.done.set_exception(error)

    async def ask_owner(self, session_id: str, action: str, group: str, channel: str) -> None:
        """
        Have the session that owns a channel join or leave a group with it; return when it has confirmed.

        An owner that is gone is counted, and is no error: its channel is gone, and so are its memberships. It is
        gone when no session has heard a request for 2.5 seconds (before, it may be reconnecting), or when it has
        not confirmed within `send_timeout`. Cancelling does not take back a request that was sent.

        Raises:
            TooManyGroups: the owner has refused it.
        """
        number, request = self._new(1)
        body = {"do": action, "group": group, "channel": channel}
        payload = self._codec.encode({**body, "request": number, "reply": self._session_id})
        inbox = self._topics.inbox(session_id)
        until, gone_at = monotonic() + self._options.send_timeout, math.inf
        try:
            # The confirmation comes to our own inbox.
            await self._bus.pubsub.confirmed(self._inbox)
            while not request.done.done():
                if monotonic() >= min(until, gone_at):
                    self._counters.dropped["dead_owner"] += 1
                    return
                # Repeating a request is harmless: the owner knows by the number what it has done.
                listeners = await self._bus.pubsub.publish(inbox, channel, payload, CONTROL)
                now = monotonic()
                gone_at = math.inf if listeners else min(gone_at, now + _GONE_AFTER)
                left = max(0.0, min(until, gone_at) - now)
                await asyncio.wait([request.done], timeout=min(left, _ASK_AGAIN))
            request.done.result()
        finally:
            del self._pending[number]

    async def flush(self) -> None:
        """
        Drop every message and every membership of the namespace; return when all sessions have done so.

        A session that does not confirm within a second (it is disconnected) is not waited for.
        """
        await self._bus.pubsub.confirmed(self._inbox)
        await self._bus.pubsub.confirmed(self._everybody)
        await self._bus.flush()
        # Confirmations may come before we know how many to expect.
        number, request = self._new(None)
        try:
            order = self._codec.encode({"do": "flush", "request": number, "reply": self._session_id})
            request.expected = await self._bus.pubsub.publish(self._everybody, "", order, CONTROL)
            request.check()
            await asyncio.wait([request.done], timeout=_FLUSH_WAIT)
        finally:
            del self._pending[number]
