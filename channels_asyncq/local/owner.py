"""What a hub calls: the session that owns it."""

from __future__ import annotations

from typing import Protocol


class HubOwner(Protocol):
    """
    The session of a hub. Everything here is called on its loop.

    Implemented by `session.session.Session`.
    """

    def on_group_empty(self, topic: bytes) -> None:
        """A group lost its last member in another way than by `Groups.leave()` or `abandon()`."""

    def on_capacity(self) -> None:
        """All the channels that deliveries had to wait for have a place again."""

    def on_loss_notified(self, reason: str, channels: int, groups: int) -> None:
        """As many channels as that, members of as many groups, were notified of a loss."""
