"""A session's group_add() and group_discard(), for own channels, normal channels and those of other sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator

from ..bus.base import PubSub
from ..local.groups import Member
from ..local.hub import Hub
from ..names import Topic, Topics, check_channel_name, check_group_name, owner_of
from .channel_names import ChannelNames
from .lifetime import Lifetime
from .lingering import LingeringTopics
from .memberships import Memberships
from .owners import Siblings
from .requests import Requests
from .routes import Routes
from .sweeping import Sweeper


class SessionGroups:
    """
    Joins and leaves groups.

    An own channel joins in the hub, and the session subscribes to the group's topic. The server holds the
    memberships of normal channels. For a channel of another session, that session is asked.
    """

    def __init__(
        self,
        names: ChannelNames,
        topics: Topics,
        lifetime: Lifetime,
        hub: Hub,
        pubsub: PubSub,
        routes: Routes,
        memberships: Memberships,
        requests: Requests,
        siblings: Siblings,
        sweeper: Sweeper,
        lingering: LingeringTopics,
    ) -> None:
        self._names = names
        self._topics = topics
        self._lifetime = lifetime
        self._hub = hub
        self._pubsub = pubsub
        self._routes = routes
        self._memberships = memberships
        self._requests = requests
        self._siblings = siblings
        self._sweeper = sweeper
        self._lingering = lingering

    def add(self, group: str, channel: str) -> Awaitable[None] | None:
        """
        Join; return an awaitable, or None if it is done because the group is confirmed here.

        The awaitable returns when the server has confirmed the group's subscription, or the owner of the channel
        has. Cancelling leaves no half member.
        """
        if isinstance(channel, str) and channel in self._hub.channels.buffers:
            return self._join(group, channel)
        self._lifetime.require_open(channel)
        check_group_name(group)
        check_channel_name(channel)
        if self._names.is_own(channel):
            return self._join(group, channel)
        session_id = owner_of(channel)
        if session_id is None:
            return self._memberships.add(group, channel)
        if not session_id:
            self._hub.counters.dropped["dead_owner"] += 1  # no process has this channel
            return None
        self._siblings.refuse_ended(session_id, channel)
        return self._requests.ask_owner(session_id, "add", group, channel)

    def _join(self, group: str, channel: str) -> Awaitable[None] | None:
        topic = self._routes.to_group(group).topic
        # The hub first: a push may arrive before the confirmation is processed.
        member = self._hub.join(topic.name, channel)
        if self._sweeper.timer is None:
            self._sweeper.start()
        if self._pubsub.is_confirmed(topic):
            member.is_confirmed = True
            return None
        self._pubsub.subscribe(topic)
        return self._confirmed_join(topic, member)

    async def _confirmed_join(self, topic: Topic, member: Member) -> None:
        member.joiners += 1
        try:
            await self._pubsub.confirmed(topic)
        except BaseException:
            member.joiners -= 1
            if self._hub.groups.abandon(topic.name, member):
                self.unsubscribe(topic.name)
            raise
        member.joiners -= 1
        member.is_confirmed = True

    def discard(self, group: str, channel: str) -> Awaitable[None] | None:
        """Leave; return an awaitable, or None if it is done."""
        if isinstance(channel, str) and channel in self._hub.channels.buffers:
            topic = self._routes.to_group(group).topic
            if self._hub.groups.leave(topic.name, channel):
                self._lingering.leave(topic)
            return None
        self._lifetime.require_open(channel)
        check_group_name(group)
        check_channel_name(channel)
        if self._names.is_own(channel):
            return None  # a channel that is not there is in no group
        session_id = owner_of(channel)
        if session_id is None:
            return self._memberships.discard(group, channel)
        if self._siblings.has_ended(session_id) or not session_id:
            return None  # the memberships have ended with the session
        return self._requests.ask_owner(session_id, "discard", group, channel)

    # Groups without members

    def unsubscribe(self, topic: bytes) -> None:
        """Unsubscribe from a group that has lost its last member here, unless it is still needed."""
        self._lingering.leave(self._topics.group(self._topics.group_named(topic)).topic)

    def unsubscribe_from(self, topics: list[bytes]) -> Iterator[bool]:
        """Unsubscribe from groups that were flushed, in slices, unless a channel has joined them again."""
        for topic in topics:
            if topic not in self._hub.groups.by_topic:
                self.unsubscribe(topic)
            yield False
