"""Which local channels are members of which groups."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..clock import monotonic
from ..settings.options import Options
from .buffers import ChannelBuffer
from .chunks import MANY, chunks
from .flow import FlowControl
from .owner import HubOwner


class Member:
    """
    One channel's place in one group.

    It `joined` once; `added` is the time of the latest group_add(). `joiners` are the calls that still wait for
    the confirmation.
    """

    __slots__ = ("added", "buffer", "is_confirmed", "joined", "joiners")

    def __init__(self, buffer: ChannelBuffer) -> None:
        self.buffer = buffer
        self.joined = self.added = monotonic()
        self.is_confirmed = False
        self.joiners = 0


class Group:
    """The local members of one group by channel name, and the earliest time at which one can lapse."""

    __slots__ = ("lapses_at", "members", "topic")

    def __init__(self, topic: bytes) -> None:
        self.topic = topic
        self.members: dict[str, Member] = {}
        self.lapses_at = math.inf


class Groups:
    """The groups with local members."""

    def __init__(self, options: Options, flow: FlowControl, owner: HubOwner) -> None:
        self._options = options
        self._flow = flow
        self._owner = owner
        #: Each of them has a member.
        self.by_topic: dict[bytes, Group] = {}
        #: How often memberships have ended: a delivery in slices looks for them when this has changed.
        self.departures = 0

    def join(self, topic: bytes, buffer: ChannelBuffer) -> Member:
        """
        Make a channel a member, or renew its membership.

        Raises:
            ChannelClosed: the channel was closed.
        """
        channel = buffer.channel
        if buffer.closed is not None:
            raise buffer.closed(channel)
        group = self.by_topic.get(topic)
        if group is None:
            group = self.by_topic[topic] = Group(topic)
        member = group.members.get(channel)
        if member is None:
            member = group.members[channel] = Member(buffer)
            buffer.groups.add(topic)
            self._flow.note_join(topic, buffer)
        else:
            member.added = monotonic()
        lapses_at = member.added + self._options.group_expiry
        if lapses_at < group.lapses_at:
            group.lapses_at = lapses_at
        return member

    def abandon(self, topic: bytes, member: Member) -> bool:
        """
        Take back a membership that was never confirmed and that no other group_add() waits for.

        Returns whether the group has lost its last member by it.
        """
        group = self.by_topic.get(topic)
        if member.is_confirmed or member.joiners or group is None or not self.has(group, member):
            return False
        return self.leave(topic, member.buffer.channel)

    def leave(self, topic: bytes, channel: str) -> bool:
        """End a membership if there is one; return whether the group has lost its last member by it."""
        group = self.by_topic.get(topic)
        if group is None:
            return False
        member = group.members.pop(channel, None)
        if member is None:
            return False
        self.departures += 1
        member.buffer.groups.discard(topic)
        self._flow.note_leave(topic, member.buffer)
        if group.members:
            return False
        del self.by_topic[topic]
        return True

    def leave_all(self, buffer: ChannelBuffer) -> None:
        """End all memberships of a channel."""
        for topic in list(buffer.groups):
            if self.leave(topic, buffer.channel):
                self._owner.on_group_empty(topic)

    def has(self, group: Group, member: Member) -> bool:
        """Tell whether a membership has not ended since."""
        return self.by_topic.get(group.topic) is group and group.members.get(member.buffer.channel) is member

    def forget_all(self) -> list[Group]:
        """End all memberships, without changing the channels; return the groups for `empty()`."""
        groups = list(self.by_topic.values())
        self.by_topic.clear()
        self.departures += 1
        return groups

    def drop_stale_topics(self, buffer: ChannelBuffer) -> None:
        """Remove the topics of forgotten groups from a channel, which may have joined groups since."""
        buffer.groups = {topic for topic in buffer.groups if self._has_channel(topic, buffer.channel)}

    def _has_channel(self, topic: bytes, channel: str) -> bool:
        group = self.by_topic.get(topic)
        return group is not None and channel in group.members

    # Long jobs in slices

    def drop_lapsed(self, group: Group, now: float) -> Iterator[bool]:
        """End the memberships of one group that lapsed."""
        group_expiry = self._options.group_expiry
        group.lapses_at = math.inf
        for some in chunks(list(group.members.values())):
            for member in some:
                # An open channel has a reader, however quiet it is. It leaves its groups when it is closed.
                used_at = now if member.buffer.is_kept else max(member.added, member.buffer.last_received)
                lapses_at = used_at + group_expiry
                if lapses_at > now:
                    group.lapses_at = min(group.lapses_at, lapses_at)
                elif self.has(group, member) and self.leave(group.topic, member.buffer.channel):
                    self._owner.on_group_empty(group.topic)
            yield False

    def sweep(self, now: float) -> Iterator[bool]:
        """End all memberships that lapsed."""
        for some in chunks(list(self.by_topic.values())):
            for group in some:
                if now >= group.lapses_at:
                    yield from self.drop_lapsed(group, now)
            yield False

    def expect_lapses(self) -> Iterator[bool]:
        """Have the next delivery or sweep look at the memberships of each group: `group_expiry` has changed."""
        for some in chunks(list(self.by_topic.values())):
            for group in some:
                group.lapses_at = 0.0
            yield False


def empty(groups: list[Group]) -> Iterator[bool]:
    """Free the members of forgotten groups in slices: all at once would be a long turn of the loop."""
    while groups:
        members = groups.pop().members
        while members:
            for _ in range(min(MANY, len(members))):
                members.popitem()
            yield False
        yield False
