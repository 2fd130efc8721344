"""A session's reader of one normal channel: ask for a message, hand it to a receiver, or give it back."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import math

from ..bus.base import WorkQueues
from ..exceptions import ChannelClosed
from ..local.buffers import ChannelBuffer
from ..local.counters import Counters
from ..messages.envelopes import FROM_QUEUE, Envelope
from .drops import DropLog

# The buffer holds the one message that is claimed from the server and not yet handed on.
_CAPACITY = 1
# A refused question is repeated after this many seconds, and each time after twice as many, up to a bound.
_PAUSE_AFTER_REFUSAL = 1.0
_MAX_DOUBLINGS = 3
# Shared by all readers: a later reader of a channel must not use a number of an earlier one.
_numbers = itertools.count(1)


class QueueReader:
    """
    Claims messages of a normal channel from the bus, one at a time, for receivers that wait.

    state     | number | what it means, and what ends it
    ----------|--------|---------------------------------------------------------------------------
    idle      | n      | nothing of n is needed any more; `poke()` asks with a higher number
    asking    | n      | the reply is due; if the link is lost, the reader asks for n again when the link
              |        | is back, or returns n if no receiver is left
    claimed   | n      | a message is in the buffer: a receiver takes it, or it is returned
    returning | n      | the message goes back to the server; if the link is lost, that is repeated when
              |        | the link is back; the reply makes the reader idle

    A higher number acknowledges the one before. So a message is never handed on and returned, and the reader asks
    for nothing while it returns one: if both commands were lost, the repeated question would acknowledge it.
    """

    def __init__(
        self,
        channel: str,
        topic: bytes,
        queues: WorkQueues,
        counters: Counters,
        drops: DropLog,
    ) -> None:
        self.channel = channel
        self.topic = topic
        self.buffer = ChannelBuffer(channel, _CAPACITY, counters)
        self._queues = queues
        self._counters = counters
        self._drops = drops
        self._receiving = 0  # receivers inside get(); one of them takes the message in the buffer
        self._number = 0
        self._is_asking = False
        self._is_returning = False
        self._must_repeat = False  # the last question or return had no reply: use the same number again
        self._is_woken = False  # something may have been pushed while the reader was asking
        self._retry: asyncio.TimerHandle | None = None
        self._refusals = 0  # in a row
        self._reply_came: asyncio.Future[None] | None = None

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
        """Look for a message: something was pushed, or the subscription begins."""
        if self._is_asking:
            self._is_woken = True
        else:
            self._ask()

    def reconnected(self) -> None:
        """Repeat the command whose reply was lost with the link, and look for messages."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._must_repeat and (self._is_returning or not self._receiving):
            # A question for receivers that have left is undone too: the server may have noted a claim.
            self._give_back()
        else:
            self.poke()

    @property
    def is_idle(self) -> bool:
        return not (
            self._receiving
            or self.buffer.queued
            or self._is_asking
            or self._is_returning
            or self._must_repeat
        )

    def flush(self) -> int:
        """Drop the claimed message; return how many that were."""
        count = self.buffer.clear()
        self._ask()  # something may have been pushed while the message was claimed
        return count

    async def close(self, reason: type[ChannelClosed]) -> None:
        """
        End all receivers with `reason`, return the claimed message, and wait for the server's reply.

        Everything but the waiting happens before the first await. Cancelling ends only the waiting.
        """
        claimed = self.buffer.clear()
        self.buffer.close(reason)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if claimed:
            self._give_back()
        while self._is_asking or (self._is_returning and not self._must_repeat):
            if self._reply_came is None:
                self._reply_came = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._reply_came)

    def _settle(self) -> None:
        """A receiver took a message, or left: ask for the next one, or return a message without a receiver."""
        if self._receiving:
            self._ask()
        elif self.buffer.queued:
            self.buffer.clear()
            self._give_back()

    def _ask(self) -> None:
        if self._is_asking or self._is_returning or self.buffer.queued:
            return
        if not self._receiving or self.buffer.closed is not None:
            return
        if not self._must_repeat:
            self._number = next(_numbers)
        answer = self._queues.pop(self.channel, self._number)
        if answer is None:
            self._must_repeat = True
            return
        # A repeated question may get the reply of the first time: that the channel was empty.
        self._is_woken, self._must_repeat, self._is_asking = self._must_repeat, False, True
        answer.add_done_callback(self._on_popped)

    def _on_popped(self, answer: asyncio.Future[Envelope | None]) -> None:
        self._is_asking = False
        self._notify_close()
        try:
            envelope = answer.result()
        except ConnectionError:
            self._repeat_later()
            return
        except ValueError as exc:
            self._drops.unreadable(self.topic, str(exc))
            self._ask()
            return
        self._refusals = 0
        if envelope is None:
            if self._is_woken:
                self._ask()
        elif self.buffer.closed is not None or not self._receiving:
            self._give_back()
        else:
            # The bus has just checked the expiry; a claimed message does not expire on its way to the receiver.
            kept = Envelope(
                envelope.payload,
                envelope.target,
                flags=FROM_QUEUE,
                excluded=envelope.excluded,
                expires_at=math.inf,
            )
            kept.message = envelope.message
            self.buffer.put_nowait(kept)

    def _give_back(self) -> None:
        self._is_returning = True
        answer = self._queues.give_back(self.channel, self._number)
        self._must_repeat = answer is None
        if answer is not None:
            answer.add_done_callback(self._on_given_back)

    def _on_given_back(self, answer: asyncio.Future[None]) -> None:
        if answer.exception() is not None:
            self._repeat_later()
        else:
            self._is_returning = False
            self._refusals = 0
            self._ask()
        self._notify_close()

    def _repeat_later(self) -> None:
        self._must_repeat = True
        # After a lost link, reconnected() is called when it is back. After a refusal nothing would: set a timer.
        if self.buffer.closed is None and self._retry is None:
            pause = _PAUSE_AFTER_REFUSAL * 2 ** min(self._refusals, _MAX_DOUBLINGS)
            self._refusals += 1
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(pause, self.reconnected, context=contextvars.Context())

    def _notify_close(self) -> None:
        if self._reply_came is not None:
            if not self._reply_came.done():
                self._reply_came.set_result(None)
            self._reply_came = None
