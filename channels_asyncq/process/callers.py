"""The states of an event loop in a layer, and what the relay does for a loop that only sends."""

from __future__ import annotations

import asyncio
from enum import Enum

from ..clock import monotonic

# A loop gets a session of its own after this many seconds or sends; until then the relay sends for it.
_MOMENT_SECONDS = 1.0
_MOMENT_SENDS = 100
# As many names of closed channels are remembered here as by a session.
_MOST_CLOSED_NAMES = 10_000


class LoopState(Enum):
    """
    Who sends for a loop. A session has the states from CHANGING on; without a session it is RELAYED or ENDING.

    state    | who sends                                        | what comes next
    ---------|--------------------------------------------------|----------------------------------------------
    RELAYED  | the relay                                        | CHANGING, when the loop receives or is lasting
    CHANGING | its session, when the relay's sends are answered | SETTLED, when they are; ENDING
    SETTLED  | its session                                      | ENDING, when the loop or the layer ends
    ENDING   | the relay: nobody would close another session    | ENDED, when its readers are closed
    ENDED    | the relay                                        | the layer forgets the session

    A loop that is ENDING or ENDED receives nothing any more, for the same reason.
    """

    RELAYED = "relayed"
    CHANGING = "changing"
    SETTLED = "settled"
    ENDING = "ending"
    ENDED = "ended"


class Caller:
    """
    A loop for which the relay sends. `pending` are its relayed sends without an answer, `closed_names` the normal
    channels that it closed before it had a session.
    """

    __slots__ = ("__weakref__", "_idle", "closed_names", "pending", "sends", "since", "state")

    def __init__(self) -> None:
        self.state = LoopState.RELAYED
        self.since = monotonic()
        self.sends = 0
        self.pending = 0
        self.closed_names: dict[str, None] = {}
        self._idle = asyncio.Event()

    @property
    def is_lasting(self) -> bool:
        """Whether it is to get a session of its own."""
        return self.state is LoopState.RELAYED and (
            self.sends >= _MOMENT_SENDS or monotonic() - self.since >= _MOMENT_SECONDS
        )

    def close_channel(self, channel: str) -> None:
        self.closed_names[channel] = None
        if len(self.closed_names) > _MOST_CLOSED_NAMES:
            del self.closed_names[next(iter(self.closed_names))]

    def sent(self) -> None:
        """Note that the relay sends something; `answered()` must follow."""
        self.sends += 1
        self.pending += 1
        self._idle.clear()

    def answered(self) -> None:
        self.pending -= 1
        if not self.pending:
            self._idle.set()

    async def all_answered(self) -> None:
        """Return when the relay has nothing more under way for this loop. Cancelling is safe."""
        while self.pending:
            await self._idle.wait()
