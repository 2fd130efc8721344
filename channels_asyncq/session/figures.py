"""The figures of a process for monitoring: those of `statistics()` without names of channels and groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..bus.base import Link
from ..tallies import Latency
from .notices import REASONS
from .statistics import Statistics

#: What messages are sent to: the keys of `Statistics.sent`.
KINDS = ("group", "channel", "normal", "local")
#: The reasons in `Statistics.dropped` and `told`. A counter that is not there before its first event shows no
#: increase.
DROPPED = (
    "overflow", "expired", "closed", "flushed", "unreadable", "unhandled", "dead_owner", "server_forgot",
)  # fmt: skip
TOLD = ("overflow", "server_forgot", *REASONS)


@dataclass(frozen=True, slots=True)
class Host:
    """The connections of a process to one host, over its event loops."""

    #: None if all of them are closed: that says nothing about the host.
    connected: bool | None
    reconnects: int
    latency: Latency
    lag: float | None

    @classmethod
    def of(cls, link: Link) -> Host:
        connected = None if link.state == "closed" else link.state == "connected"
        return cls(connected, link.reconnects, link.latency, link.lag)

    def __add__(self, other: Host) -> Host:
        known = [each for each in (self.connected, other.connected) if each is not None]
        lags = [lag for lag in (self.lag, other.lag) if lag is not None]
        return Host(
            all(known) if known else None,
            self.reconnects + other.reconnects,
            self.latency + other.latency,
            max(lags, default=None),
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one event loop, or of a process if they are added. `fullest` is the longest queue."""

    channels: int = 0
    groups: int = 0
    queued: int = 0
    fullest: int = 0
    delivered: int = 0
    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    dropped: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)

    @classmethod
    def of(cls, statistics: Statistics) -> Figures:
        hosts: dict[str, Host] = {}
        for link in statistics.links:
            _add_host(hosts, link.address, Host.of(link))
        counts = [count for _, count in statistics.queued]
        return cls(
            statistics.channels,
            statistics.groups,
            sum(counts),
            max(counts, default=0),
            statistics.delivered,
            {kind: statistics.sent.get(kind, 0) for kind in KINDS},
            dict.fromkeys(DROPPED, 0) | statistics.dropped,
            dict.fromkeys(TOLD, 0) | statistics.told,
            hosts,
        )

    def __add__(self, other: Figures) -> Figures:
        hosts = dict(self.hosts)
        for address, host in other.hosts.items():
            _add_host(hosts, address, host)
        return Figures(
            self.channels + other.channels,
            self.groups + other.groups,
            self.queued + other.queued,
            max(self.fullest, other.fullest),
            self.delivered + other.delivered,
            {kind: self.sent[kind] + other.sent[kind] for kind in KINDS},
            _sums(self.dropped, other.dropped),
            _sums(self.told, other.told),
            hosts,
        )

    def to_plain(self) -> dict[str, Any]:
        """Return them as a message may hold them."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Figures:
        """Return the figures that `to_plain()` has put into a message."""
        hosts = {address: _host(host) for address, host in plain["hosts"].items()}
        return cls(**{**plain, "hosts": hosts})


def _host(plain: Mapping[str, Any]) -> Host:
    latency = Latency(tuple(plain["latency"]["counts"]), plain["latency"]["seconds"])
    return Host(plain["connected"], plain["reconnects"], latency, plain["lag"])


def _add_host(hosts: dict[str, Host], address: str, host: Host) -> None:
    hosts[address] = hosts[address] + host if address in hosts else host


def _sums(some: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    return {reason: some.get(reason, 0) + others.get(reason, 0) for reason in {**some, **others}}
