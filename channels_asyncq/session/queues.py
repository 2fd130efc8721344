"""
A session's readers of one normal channel: ask for a message, hand it to a receiver, or give it back.

And its senders that wait for a place there.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import math
from collections.abc import Awaitable, Callable

from ..bus.base import Bus
from ..clock import monotonic
from ..exceptions import ChannelClosed
from ..local.buffers import ChannelBuffer
from ..local.counters import Counters
from ..messages.envelopes import Envelope

# The buffer holds the one message that is taken from the server and not yet handed on.
_CAPACITY = 1
# After so many seconds a question is repeated that the server refused; twice as many each time, up to a bound.
_PAUSE_AFTER_REFUSAL = 1.0
_MOST_DOUBLINGS = 3
# A sender asks for a place again after this many seconds, then ever more seldom.
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
# Of all readers: a later one for the same channel must not ask for what an earlier one has had.
_numbers = itertools.count(1)


class QueueReader:
    """
    Takes messages of a normal channel off the bus, one at a time, for receivers that wait.

    state   | number | what it means, and what ends it
    --------|--------|-----------------------------------------------------------------------------
    idle    | n      | nothing of n is needed any more; `poke()` asks for a higher number
    asking  | n      | the answer is under way; if the link is lost, n is asked again when it is back, or
            |        | given back if no receiver is left
    holding | n      | a message is in the buffer: a receiver takes it, or it is given back
    giving  | n      | it is being given back; if the link is lost, that is repeated when it is back; the
            |        | answer makes it idle

    A higher number acknowledges the one before. So a message is never handed on and given back, and nothing
    is asked while one is being given back: if both got lost, the question would acknowledge it.
    """

    def __init__(
        self,
        channel: str,
        topic: bytes,
        bus: Bus,
        counters: Counters,
        on_unreadable: Callable[[bytes, str], None],
    ) -> None:
        self.channel = channel
        self.topic = topic
        self.buffer = ChannelBuffer(channel, _CAPACITY, counters)
        self._bus = bus
        self._counters = counters
        self._on_unreadable = on_unreadable
        self._receiving = 0  # receivers inside get(); one of them takes what is in the buffer
        self._number = 0
        self._is_asking = False
        self._is_giving = False
        self._must_repeat = False  # what was asked or given has no answer: the same number again
        self._is_woken = False  # something may have been pushed while we were asking
        self._retry: asyncio.TimerHandle | None = None
        self._refusals = 0  # in a row
        self._answer_came: asyncio.Future[None] | None = None

    async def get(self) -> Envelope:
        """
        Return the next message, waiting for one if there is none.

        Cancelling is safe: a message that arrived for this receiver goes to another one, here or elsewhere.

        Raises:
            ChannelClosed: the channel was closed in this process.
        """
        self._receiving += 1
        try:
            self._ask()
            envelope = await self.buffer.get()
            self._counters.delivered += 1
        finally:
            self._receiving -= 1
            self._settle()
        return envelope

    def poke(self) -> None:
        """Look whether there is a message now: something was pushed, or the subscription begins."""
        if self._is_asking:
            self._is_woken = True
        else:
            self._ask()

    def reconnected(self) -> None:
        """Repeat what was under way when the link was lost, and look for messages."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._must_repeat and (self._is_giving or not self._receiving):
            # Also what was asked for receivers that have left: the server may hold the answer.
            self._give_back()
        else:
            self.poke()

    @property
    def is_idle(self) -> bool:
        return not (
            self._receiving or self.buffer.queued or self._is_asking or self._is_giving or self._must_repeat
        )

    def flush(self) -> int:
        """Drop the message that is held; return how many that were."""
        count = self.buffer.clear()
        self._ask()  # what was pushed while it was held
        return count

    async def close(self, reason: type[ChannelClosed]) -> None:
        """
        End all receivers with `reason`, give back what is held, and return when the server has answered.

        Everything but the waiting happens before the first await. Cancelling ends only the waiting.
        """
        held = self.buffer.clear()
        self.buffer.close(reason)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if held:
            self._give_back()
        while self._is_asking or (self._is_giving and not self._must_repeat):
            if self._answer_came is None:
                self._answer_came = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._answer_came)

    def _settle(self) -> None:
        """After a receiver took a message, or left: ask for the next one, or give back what nobody takes."""
        if self._receiving:
            self._ask()
        elif self.buffer.queued:
            self.buffer.clear()
            self._give_back()

    def _ask(self) -> None:
        if self._is_asking or self._is_giving or self.buffer.queued:
            return
        if not self._receiving or self.buffer.closed is not None:
            return
        if not self._must_repeat:
            self._number = next(_numbers)
        answer = self._bus.pop(self.channel, self._number)
        if answer is None:
            self._must_repeat = True
            return
        # A question that is repeated may be answered as it was the first time, with nothing.
        self._is_woken, self._must_repeat, self._is_asking = self._must_repeat, False, True
        answer.add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Future[Envelope | None]) -> None:
        self._is_asking = False
        self._tell_close()
        try:
            envelope = answer.result()
        except ConnectionError:
            self._repeat_later()
            return
        except ValueError as exc:
            self._on_unreadable(self.topic, str(exc))
            self._ask()
            return
        self._refusals = 0
        if envelope is None:
            if self._is_woken:
                self._ask()
        elif self.buffer.closed is not None or not self._receiving:
            self._give_back()
        else:
            # The bus has looked at its expiry just now; here it is on its way into somebody's hands.
            kept = Envelope(envelope.payload, envelope.target, expires_at=math.inf)
            kept.message = envelope.message
            self.buffer.put_nowait(kept)

    def _give_back(self) -> None:
        self._is_giving = True
        answer = self._bus.give_back(self.channel, self._number)
        self._must_repeat = answer is None
        if answer is not None:
            answer.add_done_callback(self._given_back)

    def _given_back(self, answer: asyncio.Future[None]) -> None:
        if answer.exception() is not None:
            self._repeat_later()
        else:
            self._is_giving = False
            self._refusals = 0
            self._ask()
        self._tell_close()

    def _repeat_later(self) -> None:
        self._must_repeat = True
        # If the link was lost, reconnected() is called when it is back; if the server refused, nobody calls.
        if self.buffer.closed is None and self._retry is None:
            pause = _PAUSE_AFTER_REFUSAL * 2 ** min(self._refusals, _MOST_DOUBLINGS)
            self._refusals += 1
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(pause, self.reconnected, context=contextvars.Context())

    def _tell_close(self) -> None:
        if self._answer_came is not None:
            if not self._answer_came.done():
                self._answer_came.set_result(None)
            self._answer_came = None


class SendersLine:
    """
    A session's senders that wait for a place in one normal channel: first come, first served.

    Only the first of them asks the server, so that none overtakes another, however long each has waited.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()  # those who wait for it are served in order
        self._length = 0

    @property
    def is_empty(self) -> bool:
        return not self._length

    async def wait(self, ask: Callable[[], Awaitable[bool]], until: float) -> bool:
        """
        Ask for a place until there is one; False if there is none by that time.

        Cancelling leaves the line to the next.
        """
        # The first one was refused just now.
        pause = 0.0 if self._length else _FIRST_PAUSE
        self._length += 1
        try:
            try:
                async with asyncio.timeout(None if until == math.inf else until - monotonic()):
                    await self._turn.acquire()
            except TimeoutError:
                return False
            try:
                return await self._ask(ask, until, pause)
            finally:
                self._turn.release()
        finally:
            self._length -= 1

    @staticmethod
    async def _ask(ask: Callable[[], Awaitable[bool]], until: float, pause: float) -> bool:
        while (left := until - monotonic()) > 0:
            # Other processes free its places, and expiry does, and neither tells the sender.
            await asyncio.sleep(min(pause, left))
            # Not under a timeout: a push that is cut short may be in the queue all the same.
            if await ask():
                return True
            pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * pause))
        return False
