"""Whose a channel is: this session's, another one's, or nobody's."""

from __future__ import annotations

from .. import threads
from ..exceptions import ChannelLayerError
from ..names import node_of

_MOST_ENDED = 10_000


def check_closable(channel: str, node: str | None) -> None:
    """
    Raises:
        ChannelLayerError: the channel belongs to another session than that of `node`.
    """
    if node_of(channel) not in (None, node):
        raise not_here(channel, "close it there")


def not_here(channel: str, remedy: str) -> ChannelLayerError:
    """Return the error for what only the owner of a channel can do; `remedy` says what to do if it has one."""
    if node_of(channel):
        return ChannelLayerError(f"channel {channel!r} belongs to another event loop or process; {remedy}")
    return ChannelLayerError(
        f"channel {channel!r} was not made by new_channel(), which has the 16 digits of an event loop's session "
        "before the exclamation mark: nobody has this channel. Use the names that new_channel() returns, or for "
        "a channel that any process may read a name without an exclamation mark"
    )


class EndedSessions:
    """The sessions of a layer that have ended, by node: the last 10,000. From any thread."""

    def __init__(self) -> None:
        self._nodes: dict[str, None] = {}
        self._lock = threads.lock()

    def add(self, node: str) -> None:
        with self._lock:
            self._nodes[node] = None
            if len(self._nodes) > _MOST_ENDED:
                del self._nodes[next(iter(self._nodes))]

    def __contains__(self, node: str) -> bool:
        return node in self._nodes

    def refuse(self, node: str, channel: str) -> None:
        """
        Raises:
            ChannelLayerError: the session that made the channel has ended.
        """
        if node in self:
            raise ChannelLayerError(
                f"channel {channel!r} was made on an event loop of this process that has ended: nobody can "
                "receive from it. Make it, join groups and receive on one event loop: in one coroutine, not in "
                "an async_to_sync() for each"
            )
