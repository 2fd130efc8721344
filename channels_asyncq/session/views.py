"""Read-only views of one session: its channels, its groups and its figures."""

from __future__ import annotations

from collections import Counter
from copy import copy

from ..bus.base import Bus, Link
from ..clock import monotonic, time_ns
from ..identity import identity
from ..local.buffers import ChannelView
from ..local.hub import Hub
from ..names import Topics
from ..settings.options import Options
from .drops import DropLog
from .readers import QueueReaders
from .resuming import ResumeCounts
from .sending import MessageSender
from .statistics import Statistics


class Views:
    """Read-only views of one session. From any thread: they copy dicts that its loop may be changing."""

    def __init__(
        self,
        options: Options,
        topics: Topics,
        hub: Hub,
        bus: Bus,
        readers: QueueReaders,
        drops: DropLog,
        resumes: ResumeCounts,
        sending: MessageSender,
    ) -> None:
        self._options = options
        self._topics = topics
        self._hub = hub
        self._bus = bus
        self._readers = readers
        self._drops = drops
        self._resumes = resumes
        self._sending = sending

    def channels(self) -> dict[str, ChannelView]:
        """Return the channels that are read here, and on `memory://` those that wait for a reader."""
        found = {
            channel: ChannelView(buffer.capacity, buffer.queued)
            for channel, buffer in list(self._hub.channels.buffers.items())
        }
        for channel, count in (self._readers.waiting() | self._bus.queues.waiting()).items():
            found[channel] = ChannelView(self._options.capacity_of(channel), count)
        return found

    def groups(self) -> dict[str, dict[str, float]]:
        """Return the members of groups that are known here, and the time at which each was added."""
        found = self._bus.members.held()
        for topic, group in list(self._hub.groups.by_topic.items()):
            members = {channel: member.added for channel, member in list(group.members.items())}
            found.setdefault(self._topics.group_named(topic), {}).update(members)
        epoch = time_ns() / 1e9 - monotonic()
        return {
            group: {channel: epoch + added for channel, added in members.items()}
            for group, members in found.items()
        }

    def links(self) -> list[Link]:
        """Return the state of the connections, an entry per host."""
        return self._bus.connections.links()

    def statistics(self) -> Statistics:
        hub, sent = self._hub, self._bus.sent
        queued = [
            (channel, buffer.queued)
            for channel, buffer in list(hub.channels.buffers.items())
            if buffer.queued > 0
        ]
        return Statistics(
            channels=len(hub.channels.buffers) + self._readers.count,
            groups=len(hub.groups.by_topic),
            queued=tuple(sorted(queued, key=lambda entry: -entry[1])),
            sent={
                "group": sent.group.count,
                "channel": sent.channel.count,
                "normal": sent.normal.count,
                "local": self._sending.local,
            },
            delivered=hub.counters.delivered,
            external=hub.counters.external,
            dropped=dict(hub.counters.dropped.copy() + Counter(overflow=self._drops.overruns)),
            told=dict(hub.counters.told),
            resumes=self._resumes.resumes,
            refused=dict(self._resumes.refused),
            limited=dict(hub.counters.limited),
            replay=copy(self._bus.log.counts),
            links=tuple(self.links()),
            process=identity(),
        )
