"""How long an event loop waits for the readers of full channels."""

from __future__ import annotations

# Milliseconds of waiting at once, and how many more each delivered envelope is worth.
MOST = 50.0
PER_ENVELOPE = 0.2
# One wait costs this at most: a loop whose turns are longer has other work to do meanwhile.
DEAREST_WAIT = 2.0
# Kept back for readers that have had no turn of the loop since their channels became full.
RESERVE = MOST / 2


class WaitBudget:
    """
    How many milliseconds one event loop may still wait for the readers of its full channels.

    All waiting counts, whatever channels and messages it is for: in all it is never longer than `MOST`, and
    `PER_ENVELOPE` for each envelope that was delivered.

    left                     | which full channels are waited for
    -------------------------|----------------------------------------------------------------------------
    RESERVE or more          | all
    DEAREST_WAIT to RESERVE  | those that became full since the last wait: a reader that keeps up needs no
                             | more than a turn of the loop
    less                     | none
    """

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MOST

    def earn(self) -> None:
        """Note that an envelope was delivered."""
        self.left = min(MOST, self.left + PER_ENVELOPE)

    def spend(self, milliseconds: float) -> None:
        """Note how long a wait was."""
        self.left -= min(milliseconds, DEAREST_WAIT)

    @property
    def allows_a_turn(self) -> bool:
        """Whether readers that have had no turn of the loop may be waited for."""
        return self.left >= DEAREST_WAIT

    @property
    def allows_a_pause(self) -> bool:
        """Whether any reader may be waited for."""
        return self.left >= RESERVE
