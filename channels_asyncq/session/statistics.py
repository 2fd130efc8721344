"""The figures of a layer, as its users see them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..bus.base import Link, ReplayCounts


@dataclass(frozen=True, slots=True)
class Statistics:
    """
    A snapshot, made by `Views.statistics()`. Counts begin with the start of the session that they are from.

    `queued` holds (channel, waiting messages), largest first, for each channel with waiting messages. `dropped`
    counts by reason: "overflow", "expired", "closed", "flushed", "unreadable", "unhandled" for messages from
    outside without a handler, "dead_owner" for changes of membership that the owner of a channel never
    confirmed, and "server_forgot" for normal channels whose waiting messages the server may have lost. `told`
    counts the channels that got a loss notice (or would have, if `on_loss` were set), by reason. `resumes` counts
    the channels that came back with a position, and `refused` those that did not get what they had missed, by
    reason. `limited` counts what clients were not allowed, by the name of the limit: "rate", "max_frame",
    "idle_timeout", "max_groups", "resume_rate". `replay` has what is held in memory for readers that come back.
    `links` has an entry per session and host. `process` is the `host:pid:role` of the process, empty where no
    event loop has a session.
    """

    channels: int = 0
    groups: int = 0
    queued: tuple[tuple[str, int], ...] = ()
    delivered: int = 0
    external: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    resumes: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    limited: dict[str, int] = field(default_factory=dict)
    replay: ReplayCounts = field(default_factory=ReplayCounts)
    links: tuple[Link, ...] = ()
    process: str = ""

    @property
    def reconnects(self) -> int:
        """How often a connection was made again."""
        return sum(link.reconnects for link in self.links)

    @property
    def connected(self) -> bool:
        """Whether every connection is up, except those of ended loops. False if there is no connection."""
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
            resumes=self.resumes + other.resumes,
            refused=dict(Counter(self.refused) + Counter(other.refused)),
            limited=dict(Counter(self.limited) + Counter(other.limited)),
            replay=self.replay + other.replay,
            links=self.links + other.links,
            process=self.process or other.process,
        )
