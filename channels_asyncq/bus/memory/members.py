"""Normal channels that are members of groups."""

from __future__ import annotations

from ...clock import monotonic

#: Of fewer memberships than this, nobody looks for those that lapsed.
MANY = 64


class Members:
    """The normal channels in groups. Not thread-safe: the broker's lock is held."""

    def __init__(self) -> None:
        #: By group and channel, when the membership was added and when it lapses. No group is empty.
        self.by_group: dict[str, dict[str, tuple[float, float]]] = {}
        # How many may be added before those that lapsed are dropped in all groups.
        self._adds_left = MANY

    def add(self, group: str, channel: str, seconds: float) -> None:
        if not self._adds_left:
            for each in list(self.by_group):
                self.of(each)
            # As many as are left: so each is looked at about once for each that is added.
            self._adds_left = max(MANY, sum(map(len, self.by_group.values())))
        self._adds_left -= 1
        now = monotonic()
        self.by_group.setdefault(group, {})[channel] = now, now + seconds

    def discard(self, group: str, channel: str) -> None:
        members = self.by_group.get(group)
        if members is not None:
            members.pop(channel, None)
            if not members:
                del self.by_group[group]

    def of(self, group: str) -> list[str]:
        """Return the members of a group, after removing those whose membership lapsed."""
        members = self.by_group.get(group, {})
        now = monotonic()
        for channel in [channel for channel, (_, until) in members.items() if until <= now]:
            self.discard(group, channel)
        return list(members)

    def snapshot(self) -> dict[str, dict[str, float]]:
        """Return by group and channel when each membership was added."""
        now = monotonic()
        found = {
            group: {channel: added for channel, (added, until) in members.items() if until > now}
            for group, members in self.by_group.items()
        }
        return {group: members for group, members in found.items() if members}

    def clear(self) -> None:
        self.by_group.clear()
