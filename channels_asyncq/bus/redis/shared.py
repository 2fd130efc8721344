"""The objects that all parts of one session's bus share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from ...messages.framing import Formats
from ...names import Topics
from ...settings.options import Options
from ..base import Receiver, ReplayCounts, Sent
from ..resp.outages import Outages
from .opening import Opener
from .scripts import Scripts
from .subscriptions import Subscription


class LinkObserver(Protocol):
    """The bus, as its nodes see it. Implemented by `bus.redis.bus.RedisBus`."""

    def start(self) -> None:
        """Begin connecting to all hosts, unless that is done or under way."""

    def on_links_changed(self) -> None:
        """A connection came up or was lost."""


@dataclass(frozen=True, eq=False)
class Shared:
    """The settings, names and helpers of one session, and the objects that get its callbacks."""

    options: Options
    topics: Topics
    session_id: bytes
    receiver: Receiver
    formats: Formats
    opener: Opener
    outages: Outages
    #: All scripts that are loaded into a server.
    scripts: Scripts
    loop: asyncio.AbstractEventLoop
    observer: LinkObserver
    #: The wanted topics of all partitions, to look up pushes that arrive.
    index: dict[bytes, Subscription] = field(default_factory=dict)
    #: What is in memory of the logs, over all partitions.
    replay_counts: ReplayCounts = field(default_factory=ReplayCounts)
    sent: Sent = field(default_factory=Sent)

    def report_loss(self, reason: str, topics: set[bytes]) -> None:
        """Report a loss to the receiver. What is in memory of the logs concerned does not count any more."""
        self.forget_logs(topics)
        self.receiver.on_loss(reason, topics)

    def forget_logs(self, topics: set[bytes]) -> None:
        """Forget what is in memory of the logs of these topics."""
        for topic in topics:
            entry = self.index.get(topic)
            if entry is not None and entry.partition is not None:
                entry.partition.replay.forget()
