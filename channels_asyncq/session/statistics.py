"""What a layer holds, delivered and dropped, as its users see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..bus.base import Link


@dataclass(frozen=True, slots=True)
class Statistics:
    """
    A snapshot. Counts are since the start of the sessions they are from.

    `queued` holds (channel, waiting messages), largest first, of the channels in which any wait; `dropped`
    counts by reason: "overflow", "expired", "closed", "flushed", "unreadable", "unhandled" for messages from
    outside without a handler, "dead_owner" for changes of membership that the owner of a channel never
    confirmed, and "server_forgot" for normal channels whose waiting messages the server may have lost. `told`
    counts the channels that were told of a loss (or would have been, if `on_loss` were set), by reason. `links`
    has an entry per session and host.
    """

    channels: int = 0
    groups: int = 0
    queued: tuple[tuple[str, int], ...] = ()
    delivered: int = 0
    external: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    links: tuple[Link, ...] = ()

    @property
    def reconnects(self) -> int:
        """How often a connection was made again."""
        return sum(link.reconnects for link in self.links)

    @property
    def connected(self) -> bool:
        """Whether every connection is there, but for those of loops that have ended. False if there is none."""
        return {link.state for link in self.links} - {"closed"} == {"connected"}

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            channels=self.channels + other.channels,
            groups=self.groups + other.groups,
            queued=tuple(sorted(self.queued + other.queued, key=lambda entry: -entry[1])),
            delivered=self.delivered + other.delivered,
            external=self.external + other.external,
            dropped=dict(Counter(self.dropped) + Counter(other.dropped)),
            told=dict(Counter(self.told) + Counter(other.told)),
            links=self.links + other.links,
        )
