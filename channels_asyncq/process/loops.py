"""The phases of an event loop in a layer, and the state of a loop for which the relay sends."""

from __future__ import annotations

import asyncio
from enum import Enum

from ..clock import monotonic

# A loop gets a session of its own after this many seconds or sends; until then the relay sends for it.
_RELAYED_SECONDS = 1.0
_RELAYED_SENDS = 100
# As many names of closed channels are remembered here as by a session.
_MAX_CLOSED_NAMES = 10_000


class LoopPhase(Enum):
    """
    Which session sends for an event loop. A loop with a session is in CHANGING or a later phase; one without is
    RELAYED or ENDING.

    phase    | sends go through                                 | next phase
    ---------|--------------------------------------------------|----------------------------------------------
    RELAYED  | the relay                                        | CHANGING, when the loop receives, or has sent
             |                                                  | for long enough
    CHANGING | its session, once the relay's sends are answered | SETTLED, when they are; ENDING
    SETTLED  | its session                                      | ENDING, when the loop or the layer ends
    ENDING   | the relay: nothing would close another session   | ENDED, when the session's readers are closed
    ENDED    | the relay                                        | none: the layer forgets the session

    A loop that is ENDING or ENDED receives nothing any more, for the same reason.
    """

    RELAYED = "relayed"
    CHANGING = "changing"
    SETTLED = "settled"
    ENDING = "ending"
    ENDED = "ended"


class LoopState:
    """
    An event loop without a settled session, for which the relay sends.

    `pending` counts its relayed sends without an answer; `closed_names` has the normal channels that it closed
    before it had a session. `LoopPhase` has the table of the phases.
    """

    __slots__ = ("__weakref__", "_idle", "closed_names", "pending", "phase", "sends", "since")

    def __init__(self) -> None:
        self.phase = LoopPhase.RELAYED
        self.since = monotonic()
        self.sends = 0
        self.pending = 0
        self.closed_names: dict[str, None] = {}
        self._idle = asyncio.Event()

    @property
    def is_lasting(self) -> bool:
        """Whether the loop is to get a session of its own."""
        return self.phase is LoopPhase.RELAYED and (
            self.sends >= _RELAYED_SENDS or monotonic() - self.since >= _RELAYED_SECONDS
        )

    def close_channel(self, channel: str) -> None:
        """Remember a closed normal channel; a session that is made later takes its name over."""
        self.closed_names[channel] = None
        if len(self.closed_names) > _MAX_CLOSED_NAMES:
            del self.closed_names[next(iter(self.closed_names))]

    def send_begins(self) -> None:
        """Count a send by the relay; `send_ends()` must follow."""
        self.sends += 1
        self.pending += 1
        self._idle.clear()

    def send_ends(self) -> None:
        self.pending -= 1
        if not self.pending:
            self._idle.set()

    async def all_answered(self) -> None:
        """Return when no relayed send of this loop is pending. Cancelling is safe."""
        while self.pending:
            await self._idle.wait()
