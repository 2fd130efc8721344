"""Whether a session accepts work."""

from __future__ import annotations

from ..exceptions import LayerClosed
from ..process.loops import LoopPhase


class Lifetime:
    """
    The phase of a session's event loop, shared by all rooms of the session.

    `LoopPhase` has the table. The registry of the layer moves it from CHANGING to SETTLED; the session's end
    moves it to ENDING and ENDED.
    """

    __slots__ = ("phase",)

    def __init__(self) -> None:
        self.phase = LoopPhase.CHANGING

    @property
    def is_closed(self) -> bool:
        """Whether the session accepts nothing any more; replies that are due may still be awaited."""
        return self.phase is LoopPhase.ENDING or self.phase is LoopPhase.ENDED

    def require_open(self, channel: str = "") -> None:
        """
        Raises:
            LayerClosed: the session accepts nothing any more.
        """
        if self.is_closed:
            raise LayerClosed(channel)
