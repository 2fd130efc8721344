"""The names of the channels that one session owns."""

from __future__ import annotations

from ..names import new_session_ids

# The random digits for this many names are fetched from the system at once.
_NAMES_AT_ONCE = 64


class ChannelNames:
    """Makes the names of a session's own channels, and recognises them: `<prefix>.<session id>!<local>`."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self._mark = f"{session_id}!"
        self._dotted_mark = f".{self._mark}"
        self._count = 0
        self._random_digits: list[str] = []

    def is_own(self, channel: str) -> bool:
        """Tell whether a channel is one of this session's."""
        return self._dotted_mark in channel or channel.startswith(self._mark)

    def new(self, prefix: str) -> str:
        """Return a fresh name."""
        if not self._random_digits:
            self._random_digits = new_session_ids(_NAMES_AT_ONCE)
        self._count += 1
        return f"{prefix}{self._mark}{self._count}.{self._random_digits.pop()}"
