"""One session's side of publish and subscribe."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ...local.mailbox import Mailbox
from ...messages.envelopes import Envelope
from ...slices import Slice
from ..base import Receiver
from .broker import Broker
from .pubsub import Listener

# Stands in a mailbox for a wake-up of the readers of a normal channel.
_WAKE = Envelope(b"", "")


class MemorySubscriber:
    """
    The topics that one session listens to, and the mailbox in which it gets what is published there.

    `accept()` and `drain_soon()` are called from any thread, all else on the loop of the session.

    state of a topic | `_wanted` | `_not_before` | what is delivered of it
    -----------------|-----------|---------------|------------------------------------------------------------
    unwanted         | no        | no            | what is in the mailbox; the session drops it
    wanted           | yes       | no            | everything
    wanted again     | yes       | a count       | what was put behind that many envelopes; then it is wanted
    """

    def __init__(self, broker: Broker, session_id: str, receiver: Receiver) -> None:
        self.session_id = session_id
        self._broker = broker
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self.mailbox = Mailbox(self._loop, self)
        self._wanted: set[bytes] = set()
        # By topic that is wanted again: this many of the envelopes in the mailbox were sent before that.
        self._not_before: dict[bytes, int] = {}
        # Normal channels whose wake-up is in the mailbox.
        self._waking: set[bytes] = set()
        #: The position of the last logged envelope that found no place in the mailbox, 0 for none.
        self.overran = 0
        # The topics of such envelopes, until the receiver is told. A dict: other threads add to it.
        self._lost: dict[bytes, None] = {}

    # Topics

    def subscribe(self, topic: bytes) -> None:
        if topic not in self._wanted and not self.mailbox.is_empty:
            self._not_before[topic] = self.mailbox.put_so_far
        self._wanted.add(topic)
        self._broker.listen(topic, self)

    def unsubscribe(self, topic: bytes) -> None:
        self._wanted.discard(topic)
        self._not_before.pop(topic, None)
        self._broker.stop_listening(topic, self)

    def is_subscribed(self, topic: bytes) -> bool:
        return topic in self._wanted

    def drops(self, topic: bytes) -> bool:
        """Tell whether envelopes of a topic may be in the mailbox that were sent before it was wanted again."""
        return self.mailbox.taken < self._not_before.get(topic, 0)

    async def close(self) -> None:
        """Listen to nothing any more, and drop what waits."""
        turn = Slice()
        try:
            while self._wanted:
                self._broker.stop_listening(self._wanted.pop(), self)
                await turn.rest()
        finally:
            self._broker.forget(self)
            self.mailbox.close()

    # As a listener

    @property
    def is_gone(self) -> bool:
        return self._loop.is_closed()

    def accept(self, topic: bytes, envelope: Envelope | None) -> bool:
        if envelope is None:
            # One for each topic is enough. It is never dropped: its reader would wait for ever.
            if topic not in self._waking:
                self._waking.add(topic)
                self.mailbox.put_always(topic, _WAKE)
            return True
        if self.mailbox.put(topic, envelope):
            return True
        if envelope.position:
            self.overran = envelope.position
            self._lost[topic] = None
        self._receiver.on_overrun()
        return False

    @property
    def first_waiting(self) -> int:
        return self.mailbox.first_logged()

    def drain_soon(self) -> bool:
        return self.mailbox.drain_soon()

    def drain(self) -> None:
        self.mailbox.drain()

    # From the mailbox

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        if envelope is _WAKE:
            # Removed first: what is pushed from here on gets a wake-up of its own.
            self._waking.discard(topic)
            self._receiver.on_wake(topic)
            return True
        if self._lost:
            self._report_losses()
        if self._not_before and self._is_too_old(topic):
            return True
        return self._receiver.on_envelope(topic, envelope)

    def _report_losses(self) -> None:
        """Report what found no place. Its receivers may get it from the log."""
        topics: set[bytes] = set()
        while self._lost:
            topics.add(self._lost.popitem()[0])
        self._receiver.on_loss("overflow", topics)

    def _is_too_old(self, topic: bytes) -> bool:
        """Tell whether the envelope that is offered was sent before its topic was wanted again."""
        if self.drops(topic):
            return True
        self._not_before.pop(topic, None)
        return False

    # To others

    def hand_over(self, listeners: Iterable[Listener]) -> int:
        """Have listeners deliver what they have accepted; return how many can, and forget the others."""
        count = 0
        for listener in listeners:
            if listener is self:
                # At once, behind everything that reached the mailbox earlier.
                self.mailbox.drain()
            elif not listener.drain_soon():
                self._broker.forget(listener)
                continue
            count += 1
        return count
