"""The owner of a channel: this session, another one, or none."""

from __future__ import annotations

from typing import Protocol

from .. import threads
from ..exceptions import ChannelLayerError
from ..names import owner_of

_MAX_ENDED = 10_000


def check_closable(channel: str, session_id: str | None) -> None:
    """
    Raises:
        ChannelLayerError: the channel belongs to another session than that of `session_id`.
    """
    if owner_of(channel) not in (None, session_id):
        raise not_here(channel, "close it there")


def not_here(channel: str, remedy: str) -> ChannelLayerError:
    """Return the error for what only the owner of a channel can do; `remedy` says what to do if it has one."""
    if owner_of(channel):
        return ChannelLayerError(f"channel {channel!r} belongs to another event loop or process; {remedy}")
    return ChannelLayerError(
        f"channel {channel!r} was not made by new_channel(), which has the 16 digits of an event loop's session "
        "before the exclamation mark: nobody has this channel. Use the names that new_channel() returns, or for "
        "a channel that any process may read a name without an exclamation mark"
    )


class Siblings(Protocol):
    """
    What a session knows of the layer's other sessions in this process.

    Implemented by `session.registry.SessionRegistry`.
    """

    def look_for_ended(self) -> None:
        """Find the sessions whose loops were closed without a word. From any thread."""

    def has_ended(self, session_id: str) -> bool:
        """Look for ended sessions, and tell whether this one is among them."""

    def refuse_ended(self, session_id: str, channel: str) -> None:
        """
        Look for ended sessions.

        Raises:
            ChannelLayerError: the session that made the channel has ended.
        """

    def note_end(self, session_id: str) -> None:
        """Remember that a session has ended, or is ending."""


class EndedSessions:
    """The ids of a layer's sessions that have ended: the last 10,000. From any thread."""

    def __init__(self) -> None:
        self._sessions: dict[str, None] = {}
        self._lock = threads.lock()

    def add(self, session_id: str) -> None:
        with self._lock:
            self._sessions[session_id] = None
            if len(self._sessions) > _MAX_ENDED:
                del self._sessions[next(iter(self._sessions))]

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def refuse(self, session_id: str, channel: str) -> None:
        """
        Raises:
            ChannelLayerError: the session that made the channel has ended.
        """
        if session_id in self:
            raise ChannelLayerError(
                f"channel {channel!r} was made on an event loop of this process that has ended: nobody can "
                "receive from it. Make it, join groups and receive on one event loop: in one coroutine, not in "
                "an async_to_sync() for each"
            )
