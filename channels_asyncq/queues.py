"""A session's readers of one normal channel: ask for a message, hand it to a receiver, or give it back."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from functools import partial

from .buffers import ChannelBuffer, Tally
from .bus.base import Bus
from .envelopes import Envelope
from .exceptions import ChannelClosed

# The buffer holds the one message that is taken from the server and not yet handed on.
_CAPACITY = 1


# Higher than any before, for every reader of this process: the server takes a lower one for an old command.
_numbers = itertools.count(1)


class QueueReader:
    """
    Takes messages of a normal channel off the bus, one at a time, for receivers that wait.

    state   | number | what it means, and what ends it
    --------|--------|-----------------------------------------------------------------------------
    idle    | n      | nothing of n is needed any more; `poke()` asks for n + 1
    asking  | n      | the answer is under way; if the link is lost, n is asked again when it is back
    holding | n      | a message is in the buffer: a receiver takes it, or it is given back
    giving  | n      | it is being given back; if the link is lost, that is repeated when it is back

    The next number acknowledges the one before, so a message is never handed on and given back.
    """

    def __init__(
        self, channel: str, topic: bytes, bus: Bus, tally: Tally, on_unreadable: Callable[[bytes, str], None]
    ) -> None:
        self.channel = channel
        self.topic = topic
        self.buffer = ChannelBuffer(channel, _CAPACITY, tally)
        self._bus = bus
        self._tally = tally
        self._on_unreadable = on_unreadable
        self._receiving = 0  # receivers inside get(); one of them takes what is in the buffer
        self._number = next(_numbers)
        self._is_asking = False
        self._is_giving = False
        self._must_repeat = False  # what was asked or given has no answer: the same number again
        self._is_woken = False  # something was pushed while we were asking
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
            self._tally.delivered += 1
        finally:
            self._receiving -= 1
            self._settle()
        return envelope

    def poke(self) -> None:
        """Look whether there is a message now: something was pushed, or the link is up again."""
        if self._is_asking:
            self._is_woken = True
        else:
            self._ask()

    def reconnected(self) -> None:
        """Repeat what was under way when the link was lost, and look for messages."""
        if self._is_asking:
            # The answer under way may be from before the gap, in which wake-ups were missed.
            self._is_woken = True
        elif self._must_repeat and self._is_giving:
            self._give_back()
            self._ask()
        else:
            self._ask()

    @property
    def is_idle(self) -> bool:
        return not (self._receiving or self.buffer.queued or self._is_asking or self._is_giving)

    def flush(self) -> int:
        """Drop the message that is held; return how many that were."""
        return self.buffer.clear()

    async def close(self, reason: type[ChannelClosed]) -> None:
        """
        End all receivers with `reason`, give back what is held, and return when the server has answered.

        Everything but the waiting happens before the first await. Cancelling ends only the waiting.
        """
        held = self.buffer.clear()
        self.buffer.close(reason)
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
        if self._is_asking or not self._receiving or self.buffer.queued or self.buffer.closed is not None:
            return
        if self._must_repeat and self._is_giving:
            # Again, in case it was not executed; the next number takes it from the list.
            self._give_back()
            if self._must_repeat:
                return
        if not self._must_repeat:
            self._number = next(_numbers)
        answer = self._bus.pop(self.channel, self._number)
        if answer is None:
            self._must_repeat = True
            return
        self._is_asking, self._is_woken, self._must_repeat, self._is_giving = True, False, False, False
        answer.add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Future[Envelope | None]) -> None:
        self._is_asking = False
        self._tell_close()
        try:
            envelope = answer.result()
        except ConnectionError:
            self._must_repeat = True
            # The link may be up again already, or never have been down (an error reply): ask when told so.
            return
        except ValueError as exc:
            self._on_unreadable(self.topic, str(exc))
            self._ask()
            return
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
        # A pop() that is called from here on is executed after it: they share a connection.
        answer = self._bus.give_back(self.channel, self._number)
        if answer is None:
            self._must_repeat = self._is_giving = True
        else:
            self._is_giving, self._must_repeat = True, False
            answer.add_done_callback(partial(self._given_back, self._number))

    def _given_back(self, number: int, answer: asyncio.Future[None]) -> None:
        self._tell_close()
        if number != self._number or not self._is_giving:
            return
        if answer.exception() is None:
            self._is_giving = False
        else:
            self._must_repeat = True

    def _tell_close(self) -> None:
        if self._answer_came is not None:
            if not self._answer_came.done():
                self._answer_came.set_result(None)
            self._answer_came = None
