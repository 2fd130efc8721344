"""The routes to the channels and groups that a session sends to."""

from __future__ import annotations

from ..bus.base import Bus, ChannelRoute, GroupRoute
from ..exceptions import ChannelClosed
from ..local.hub import Hub
from ..names import check_group_name, owner_of

_MAX_ROUTES = 8192


class Routes:
    """
    A session's only cache of names: a name is checked once, when its route is made.

    A route in `channels` leads to a channel that was not closed here. Both caches are emptied when they are full.
    """

    __slots__ = ("_bus", "_hub", "channels", "groups")

    def __init__(self, bus: Bus, hub: Hub) -> None:
        self._bus = bus
        self._hub = hub
        self.channels: dict[str, ChannelRoute] = {}
        self.groups: dict[str, GroupRoute] = {}

    def to_channel(self, channel: str) -> ChannelRoute:
        """
        Return the route to a channel of another session, or to a normal channel.

        Raises:
            ChannelClosed: the channel was closed here.
        """
        route = self.channels.get(channel)
        if route is None:
            if channel in self._hub.channels.closed_names:
                raise ChannelClosed(channel)
            if len(self.channels) >= _MAX_ROUTES:
                self.channels.clear()
            channel = str.__str__(channel)  # a subclass may compare as it likes
            owner = owner_of(channel)
            if owner is None:
                route = self._bus.queues.route(channel)
            else:
                route = self._bus.pubsub.channel_route(channel, owner)
            self.channels[channel] = route
        return route

    def to_group(self, group: str) -> GroupRoute:
        """
        Return the route to a group.

        Raises:
            TypeError: this is not a group name.
        """
        route = self.groups.get(group) if isinstance(group, str) else None
        if route is None:
            check_group_name(group)
            if len(self.groups) >= _MAX_ROUTES:
                self.groups.clear()
            group = str.__str__(group)
            route = self.groups[group] = self._bus.pubsub.group_route(group)
        return route

    def forget_channel(self, channel: str) -> None:
        self.channels.pop(channel, None)

    def forget_channels(self) -> None:
        """Forget all routes to channels: those to normal channels hold the capacity of their channel."""
        self.channels.clear()

    def clear(self) -> None:
        self.channels.clear()
        self.groups.clear()
